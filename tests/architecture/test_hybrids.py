"""Models of which some layers have no attention, and of which layers differ in size from the start."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.experts.lora import adaptable, lost_on_reading
from secateur.architecture.families import FAMILIES
from secateur.architecture.layered import layered_shapes
from secateur.architecture.stock import stock_class_of
from secateur.checkpoint.comparing import logits_of
from secateur.checkpoint.export import build_small, save_model
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.models.coverage import not_adapted, uncalled_linears
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.surgery import merged_and_sliced
from secateur.pruning.compensation.sequence import refit_in_sequence
from secateur.pruning.masks import Masks
from secateur.system.errors import InputError
from secateur.training.finetune import check_resumable
from secateur.training.prepare import prepare
from tests.architecture.rows import IDS, tiny

FFN = 2 * 240 * 48 + 48 * 240
"""Parameters of the FFN of one of Qwen3.5's rows."""
GROUP = 16 * 48 * (2 * 2 + 2 + 2)
"""Of a KV head there and its two query heads, of 16: each query has a gate, and there are k, v and the columns of o."""


def test_the_budget_counts_what_can_go_where_it_can() -> None:
    model = tiny("qwen3_5_text")
    pruner = Pruner(model, sparsity=0.4, criterion="magnitude")
    units = pruner.units
    assert [shape.key() for shape in units.shapes] == [(0, 0, 240), (6, 3, 240), (6, 3, 240)]
    assert [pool.name for pool in units.of_kind("kv_group")] == ["layer.1.kv_group", "layer.2.kv_group"]
    assert {pool.unit_params for pool in units.of_kind("kv_group")} == {GROUP}
    assert units.prunable_params == 3 * FFN + 2 * 3 * GROUP
    # A share of 0.4 takes one KV head of three: what layers without heads give is not asked of the others.
    assert {pruner.budget.quota[pool.name] for pool in units.of_kind("kv_group")} == {1}
    assert pruner.budget.sparsity == pytest.approx(0.4, abs=0.005)
    query = Pruner(model, sparsity=0.3, criterion="magnitude", attention="query_head")
    assert {pool.unit_params for pool in query.units.of_kind("query_head")} == {16 * 48 * 3}


def test_a_query_goes_with_its_gate() -> None:
    """A head whose query and gate are both cut is that head with nothing behind it in `o`."""
    model = tiny("qwen3_5_text")
    units = find_units(model, FAMILIES["qwen3_5_text"], "query_head")
    keep = {pool.name: torch.arange(pool.size) != 1 for pool in units.of_kind("query_head")}
    keep = {pool.name: keep.get(pool.name, torch.ones(pool.size, dtype=torch.bool)) for pool in units.pools}
    keep = {name: stay & (torch.arange(len(stay)) % 2 == 0) if "head" in name else stay for name, stay in keep.items()}
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
    assert small.config.num_attention_heads == 3
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight.data.view(48, 6, 16)[:, 1::2] = 0
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(small, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_a_hybrid_whose_layers_differ_says_what_each_has(tmp_path) -> None:
    model = tiny("lfm2")
    units = find_units(model, FAMILIES["lfm2"])
    keep = {pool.name: torch.arange(pool.size) >= pool.layer for pool in units.pools}
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(model.config, units.family, units.shapes_after(keep), tensors, torch.float32, "keep")
    save_model(small, tmp_path / "out", units.family)
    sizes = json.loads((tmp_path / "out" / "config.json").read_text())["secateur_layers"]
    assert sizes == [
        {"intermediate_size": 240},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 239},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 238},
    ]
    again = load_model(resolve_model(str(tmp_path / "out"))).eval()
    assert layered_shapes(again.config) == find_units(again, units.family).shapes == units.shapes_after(keep)
    torch.testing.assert_close(logits_of(again, IDS), logits_of(small, IDS))
    Pruner(again, sparsity=0.2, criterion="magnitude", allocation="global")  # it never had what it has not: no refusal


def test_a_run_says_what_stays(tmp_path) -> None:
    tiny("lfm2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    settings = PruneConfig(
        model=str(tmp_path / "model"), data=(str(tmp_path / "text.txt"),), output=str(tmp_path / "out"), sparsity=0.3,
        steps=4, batch_size=2, seq_len=32,
    )  # fmt: skip
    assert "convolutions stay as they are: 2 of 3 layers have attention" in prepare(settings).notes
    for units in ("layers", "blocks"):
        with pytest.raises(InputError, match=f"--units {units}: a lfm2 is a hybrid, and its convolutions stay"):
            prepare(replace(settings, units=units))


def test_widths_that_differ_from_the_start_are_read_and_written() -> None:
    model = tiny("gemma3n_text")
    pruner = Pruner(model, sparsity=0.2, criterion="magnitude")
    assert [shape.ffn for shape in pruner.units.shapes] == [240, 120, 240, 180]
    # The first layer chooses among its channels by the mean of all: none can go there.
    assert [pool.name for pool in pruner.units.pools] == ["layer.1.ffn", "layer.2.ffn", "layer.3.ffn"]
    left = [shape.ffn for shape in pruner.units.shapes_after(pruner.budget.example())]
    assert left[0] == 240
    shares = [after / before for after, before in zip(left[1:], (120, 240, 180), strict=True)]
    assert max(shares) - min(shares) < 0.01


def test_a_block_that_layers_share_is_one(tmp_path) -> None:
    model = tiny("zamba")
    blocks = [layer.shared_transf for layer in model.model.layers if hasattr(layer, "shared_transf")]
    assert len(blocks) == 2
    assert blocks[0] is blocks[1]
    assert [pool.layer for pool in find_units(model, FAMILIES["zamba"]).pools] == [1, 1]  # heads and channels
    apart = type(model)(model.config)  # the same weights in two modules, as transformers has it
    with pytest.raises(InputError, match="layers share their shared_transf by its weights.*unstack_experts"):
        find_units(apart, FAMILIES["zamba"])
    linears = [path for path, module in apart.named_modules() if isinstance(module, torch.nn.Linear)]
    lost = lost_on_reading(linears, apart)
    assert lost == [path for path in linears if ".shared_transf." in path]
    assert len(lost) == 2 * 7
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["gate_proj"]))
    lora.save_pretrained(tmp_path)
    check_resumable(lora, tmp_path)
    assert sum(".lora_A" in name for name, _ in lora.named_parameters()) == 1


def test_a_hybrid_is_refit_in_sequence() -> None:
    """Layers without attention are gone through too, and what is left is nearer to the whole model than without."""
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 120, (4, 37), generator=generator)} for _ in range(8)]
    distances = []
    for refits in (False, True):
        model = tiny("qwen3_5_text")
        units, whole = find_units(model, FAMILIES["qwen3_5_text"]), logits_of(model, batches[0]["input_ids"])
        stay = {pool.name: torch.arange(pool.size) >= pool.size // 3 for pool in units.pools}
        if refits:
            assert len(refit_in_sequence(model, units, stay, batches)) == 5  # three of down, two of o
        masks = Masks(units, {path: model.get_submodule(path) for path in units.linears}, {})
        masks.update(stay)
        distances.append((logits_of(model, batches[0]["input_ids"]) - whole).norm())
    assert distances[1] < distances[0]
    with pytest.raises(InputError, match="gemma4_text is a model whose layers use the keys and values of others"):
        Pruner(tiny("gemma4_text"), sparsity=0.2, criterion="magnitude", compensate="sequential")


def test_a_model_of_another_layout_is_no_hybrid() -> None:
    with pytest.raises(InputError, match="no layer of the model has the feed_forward.w2 that the lfm2 layout names"):
        find_units(tiny("qwen3_5_text"), replace(FAMILIES["lfm2"], o="self_attn.o_proj", query_rows=2))
    with pytest.raises(InputError, match="no layer of the model has the self_attn.out_proj that the lfm2 layout"):
        find_units(tiny("qwen3_5_text"), FAMILIES["lfm2"])
    config = tiny("jamba").config
    config.num_experts, config.expert_layer_period, config.expert_layer_offset = 2, 2, 0
    with pytest.raises(InputError, match="model.layers.0 has experts, and the config of a jamba has one width"):
        find_units(type(tiny("jamba"))(config), FAMILIES["jamba"])


def test_what_an_adapter_leaves_out() -> None:
    model = tiny("qwen3_5_text")
    small = [f"model.layers.0.linear_attn.in_proj_{name}" for name in "ba"]  # 4 rows of 48
    assert not_adapted(model, 4) == []
    assert sorted(not_adapted(model, 8)) == sorted(small)
    assert not_adapted(model, 64) == []  # most are narrower: the rank is what is wrong
    model.model.layers[1].mlp.gate = torch.nn.Linear(48, 20)
    model.config.num_experts = 20
    assert not_adapted(model, 4) == ["model.layers.1.mlp.gate"]
    assert adaptable(model) == "all-linear"

    class Grouped(torch.nn.Linear):
        def forward(self, x):
            return torch.cat([half @ self.weight[:, :48].T for half in x.chunk(2, -1)], -1)

    model.model.layers[2].self_attn.o_proj = Grouped(96, 48)
    assert "model.layers.2.self_attn.o_proj" in not_adapted(model, 4)
    # All linears of a Falcon are of a class of its own, which only writes the product in another way.
    assert not_adapted(tiny("falcon/multi_query"), 4) == []
    # PEFT refuses LoRA on this projection of a Mamba layer there, and says so in an error.
    names = adaptable(tiny("falcon_h1"))
    assert "out_proj" not in names
    assert {"in_proj", "q_proj", "gate_proj"} <= set(names)


def test_linears_that_have_no_part_in_the_logits() -> None:
    """A linear whose output decides, but is not computed with, has no gradient; the model is left as it was."""
    model = tiny("qwen3_5_text")
    layer = model.model.layers[1]
    layer.indexer = torch.nn.Linear(48, 4)
    layer.mlp.register_forward_hook(lambda module, args, output: output * (layer.indexer(args[0]) > -1e9).all())
    before = logits_of(model, IDS)
    assert uncalled_linears(model, IDS) == ["model.layers.1.indexer"]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(logits_of(model, IDS), before)


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next"])
def test_a_hybrid_is_adapted_and_read_back(tmp_path, capsys, name) -> None:
    stock_class_of(config := tiny(name).config)._from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    given = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--rank", "2", "--init-rank"]
    more = ["8", "--steps", "6", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype", "float32"]
    assert main(["adapt", *given, *more, "--merge", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("no LoRA on") <= 1
    before, after = (load_model(resolve_model(str(tmp_path / folder))) for folder in ("model", "out"))
    assert not torch.equal(logits_of(before, IDS), logits_of(after, IDS))
