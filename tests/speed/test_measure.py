"""A table that is measured with a clock that counts parameters has exactly the parameters in it."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_llama
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MixtralConfig, MixtralForCausalLM

from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import family_of
from secateur.config.sizes import parse_speed_at
from secateur.models.benchmark import parameter_count
from secateur.speed import find, measure
from secateur.speed.costs import Costs
from secateur.speed.stack import Subject
from secateur.speed.table import read_table, table_of
from secateur.system.errors import InputError
from secateur.system.records import write_json
from tests.speed.made_up import units_of

SMALL = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=0,
)  # fmt: skip
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
MODELS = {
    "llama": lambda: tiny_llama(layers=4, heads=8, kv_heads=4, head_dim=8),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, num_hidden_layers=3, layer_types=KINDS)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=4)),
}


def subject(model, **more) -> Subject:
    family = family_of(model.config.model_type)
    return Subject(model.config, family, torch.device("cpu"), torch.float32, torch.float32, **more)


@pytest.fixture
def counting(monkeypatch):
    """The clock counts the parameters of the model that it times."""
    monkeypatch.setattr(measure, "_forward_ms", lambda model, ids, subject: float(parameter_count(model)))
    monkeypatch.setattr(measure, "REPEATS", 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_clock_that_counts_parameters_finds_them(name, counting) -> None:
    model = MODELS[name]()
    unstack_experts(model)
    at = parse_speed_at("prefill:1x8")
    found = find.measured_table(subject(model), at)
    units = units_of(model)
    costs = Costs(table_of(json.loads(json.dumps(found.record()))), at, units)
    assert costs.dense_ms == pytest.approx(parameter_count(model), rel=1e-9)
    for pool in units.pools:
        steps = range(0, pool.size, 8 if pool.kind == "ffn" else 1)
        assert [costs.saved(pool, gone) for gone in steps] == pytest.approx([gone * pool.unit_params for gone in steps])
    assert len(found.times["prefill:1x8"].layers) == {"gemma3_text": 2}.get(name, 1)


def test_real_times_of_prompts_and_of_tokens(monkeypatch) -> None:
    """With a real clock: sizes are all there, and no smaller layer takes longer."""
    monkeypatch.setattr(measure, "REPEATS", 2)
    model = tiny_llama(layers=4, heads=8, kv_heads=4, head_dim=8)
    found = find.measured_table(subject(model), parse_speed_at("prefill:2x8,decode:1x8+6"))
    for times in found.times.values():
        (layers,) = times.layers
        assert layers.layers == (0, 1, 2, 3)
        assert {(one.heads, one.kv_heads) for one in layers.heads} >= {(0, 0), (8, 4), (6, 3), (2, 1), (4, 4)}
        values = [one.ms for one in layers.channels]
        assert values == sorted(values)
        assert [one.channels for one in layers.channels][-1] == 96
        assert times.rest_ms > 0
    both = Costs(found, parse_speed_at("3*prefill:2x8,decode:1x8+6"), units_of(model))
    alone = [Costs(found, parse_speed_at(at), units_of(model)).dense_ms for at in ("prefill:2x8", "decode:1x8+6")]
    assert both.dense_ms == pytest.approx(3 * alone[0] + alone[1])


def test_a_table_is_kept_and_a_changed_machine_noticed(tmp_path, monkeypatch, counting) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    measured = []
    original = find.measure_times

    def measuring(subject, at, told):
        measured.append(at.name)
        return original(subject, at, told)

    monkeypatch.setattr(find, "measure_times", measuring)
    model = subject(MODELS["llama"]())
    first = find.kept_table(model, parse_speed_at("prefill:1x8"))
    assert "measured on" in first.note
    again = find.kept_table(model, parse_speed_at("prefill:1x8"))
    assert again.table.times == first.table.times
    assert "kept" in again.note
    assert measured == ["prefill:1x8"]
    find.kept_table(model, parse_speed_at("prefill:1x8,prefill:1x16"))
    assert measured == ["prefill:1x8", "prefill:1x16"], "what is known is not measured again"
    threads = torch.get_num_threads()
    monkeypatch.setattr(find.torch, "get_num_threads", lambda: threads + 3)
    other = find.kept_table(model, parse_speed_at("prefill:1x8"))
    assert f"threads {threads}, now {threads + 3}" in other.note
    assert measured[2:] == ["prefill:1x8"]
    (file,) = (tmp_path / "cost-tables").glob("*.json")
    file.write_text("{")  # whatever is there that is none is measured again
    assert "measured on" in find.kept_table(model, parse_speed_at("prefill:1x8")).note


def test_widths_that_are_slow_are_not_chosen() -> None:
    """A device on which only multiples of 32 are fast."""
    widths, probes, _ = measure._widths(512, 1)
    slow = {width: width + (0 if width % 32 == 0 else 60.0) for width in {*widths, *probes, 512}}
    assert measure._step(slow, widths, probes) == 32
    assert measure._step({width: float(width) for width in slow}, widths, probes) == 8
    only = {width: width + (0 if width % 64 == 0 else 60.0) for width in slow}
    assert measure._step(only, widths, probes) == 64


def test_a_straight_line_where_nothing_speaks_against_it() -> None:
    noisy = {n: measure.Took(10.0 + n + (-1) ** n * 0.1, 0.2) for n in range(8)}
    line = measure.smooth(noisy)
    assert [line[n + 1] - line[n] for n in range(7)] == pytest.approx([line[1] - line[0]] * 7)
    steps = {n: measure.Took(float(n // 4), 0.01) for n in range(8)}
    assert measure.smooth(steps) == {n: float(n // 4) for n in range(8)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.pop("cost_table_format"), "it is no cost table"),
        (lambda record: record.update(cost_table_format=2), "its layout is 2, this version knows 1"),
        (
            lambda record: record["times"]["prefill:1x8"].update(rest_ms="fast"),
            "a part of it is missing or of another kind .ValueError",
        ),
        (lambda record: record.pop("width_step"), "a part of it is missing or of another kind .KeyError: 'width_step'"),
        (lambda record: record["times"].clear(), "it has no times"),
    ],
)
def test_a_file_that_is_no_table(change, said, tmp_path, counting) -> None:
    record = find.measured_table(subject(MODELS["llama"]()), parse_speed_at("prefill:1x8")).record()
    record = json.loads(json.dumps(record))
    change(record)
    write_json(tmp_path / "table.json", record)
    with pytest.raises(InputError, match=f"--cost-table .*table.json: {said}"):
        read_table(tmp_path / "table.json")


def test_a_table_of_another_model_is_refused(counting) -> None:
    at = parse_speed_at("prefill:1x8")
    found = find.measured_table(subject(MODELS["llama"]()), at)
    with pytest.raises(InputError, match="T is of a model of 4 layers, and this one has 3"):
        Costs(found, at, units_of(tiny_llama(layers=3)), "T")
    with pytest.raises(
        InputError, match=r"T is of another model: layer 0 has 8 heads, .* 128 channels, .* 8, 4 and 96"
    ):
        Costs(found, at, units_of(tiny_llama(layers=4, heads=8, kv_heads=4, head_dim=8, ffn=128)), "T")
    with pytest.raises(InputError, match="T has no times of decode:1x8.4, but of prefill:1x8: ask for these"):
        Costs(found, parse_speed_at("decode:1x8+4"), units_of(MODELS["llama"]()), "T")
    long = SimpleNamespace(max_position_embeddings=512)
    with pytest.raises(InputError, match="--speed-at decode:1x512.128 is 640 tokens, and the model has 512 positions"):
        find.check_positions(long, parse_speed_at("decode:1x512+128"))
