"""`secateur adapt`: a plain adapter at the exact rank, verified, resumable, and bad input that never gets far."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import save_tiny, tiny_llama
from transformers import AutoModelForCausalLM
from zygote import launch

from secateur.checkpoint.adapter import other_readers
from secateur.cli import main
from secateur.training.callback import PruningCallback

QUESTIONS = "".join(
    json.dumps({"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."}) + "\n" for i in range(150)
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    save_tiny(folder / "model", layers=2)
    (folder / "sums.jsonl").write_text(QUESTIONS)
    return folder


def command(place, output, *more, name="adapt", rank=3, init_rank=12) -> list[str]:
    return [
        name, "--model", str(place / "model"), "--data", str(place / "sums.jsonl"), "--output", str(output),
        "--rank", str(rank), "--init-rank", str(init_rank), "--steps", "14", "--batch-size", "2", "--seq-len", "48",
        "--frequency", "2", "--dtype", "float32", "--lr", "5e-3", *more,
    ]  # fmt: skip


def ids():
    return torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "more", [(), ("--allocation", "global"), ("--rslora", "--criterion", "sparsegpt"), ("--k1", "2", "--k2", "3")]
)
def test_a_plain_adapter_comes_out(place, tmp_path, capsys, more) -> None:
    out = tmp_path / "out"
    assert main(command(place, out, *more)) == 0
    printed = capsys.readouterr()
    assert "rank 12 -> 3" in printed.out
    assert "PeftModel.from_pretrained" in printed.out
    config = json.loads((out / "adapter_config.json").read_text())
    tensors = load_file(out / "adapter_model.safetensors")
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name]
    assert sum(ranks) == 3 * len(ranks)
    if "global" not in more:
        assert config["r"] == 3
        assert not config["rank_pattern"]
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    plain = base(ids()).logits
    adapted = PeftModel.from_pretrained(base, out)
    expected = 3**-0.5 * 3 if "--rslora" in more else 1.0  # alpha = rank
    for layer in adapted.modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
            assert layer.scaling["default"] == pytest.approx(expected)
    assert (adapted(ids()).logits - plain).abs().max() > 0.05
    result = json.loads((out / "result.json").read_text())
    assert result["adapter"]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["rank"] == 12
    assert metrics[-1]["rank"] == 3
    assert not (tmp_path / "out.run").exists()
    if "--k1" in more:
        cuts = json.loads((out / "ranks.json").read_text())["cuts"]
        assert [(cut["step"], set(cut["ranks"].values())) for cut in cuts] == [(3, {9}), (5, {6}), (7, {3})]


@pytest.mark.parametrize("more", [(), ("--lora-init", "pissa"), ("--lora-init", "olora")])
def test_merged(place, tmp_path, capsys, more) -> None:
    assert main(command(place, tmp_path / "out", "--merge", *more)) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in base.parameters())
    assert (merged(ids()).logits - base(ids()).logits).abs().max() > 0.05
    if not more:  # the same run as an adapter computes the same
        assert main(command(place, tmp_path / "adapter")) == 0
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
        torch.testing.assert_close(merged(ids()).logits, adapted(ids()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("allocation", "basis"), [("global", "given"), ("uniform", "singular")])
def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch, capsys, allocation, basis) -> None:
    more = ("--save-steps", "2", "--dropout", "0.2", "--allocation", allocation, "--recovery", "newton+compensate")
    more += ("--basis", basis, "--scaling", "rank" if basis == "singular" else "fixed")
    assert main(command(place, tmp_path / "whole", *more)) == 0
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    assert main(command(place, tmp_path / "out", *more)) == 130
    monkeypatch.undo()
    assert main(command(place, tmp_path / "out", "--resume", *more)) == 0
    assert "resuming from checkpoint-6" in capsys.readouterr().err
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_starting_from_an_adapter(place, tmp_path, capsys) -> None:
    assert main(command(place, tmp_path / "one", rank=12)) == 0
    assert "nothing to prune" in capsys.readouterr().err
    assert main(command(place, tmp_path / "two", "--adapter", str(tmp_path / "one"))) == 0
    assert json.loads((tmp_path / "two" / "adapter_config.json").read_text())["r"] == 3
    # The adapter's own rank counts, whatever --init-rank would be by default or not.
    more = ("--adapter", str(tmp_path / "one"), "--k1", "1", "--k2", "1")
    given = command(place, tmp_path / "three", *more, rank=12)
    del given[given.index("--init-rank") : given.index("--init-rank") + 2]
    assert main(given) == 0


def test_units_and_rank_in_one_run(place, tmp_path, capsys) -> None:
    more = ("--sparsity", "0.3", "--save-steps", "4")
    assert main(command(place, tmp_path / "whole", *more, name="prune")) == 0
    said = capsys.readouterr().err
    assert "FFN channels gone" in said
    assert "rank now 3.0" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.config.intermediate_size < 96
    assert (tmp_path / "whole" / "units.json").is_file()
    record = json.loads((tmp_path / "whole" / "ranks.json").read_text())
    assert set(record["start"].values()) == {12}
    assert set(record["end"].values()) == {3}
    assert record["cuts"][-1]["ranks"] == record["end"]


def test_units_and_rank_resumed(place, tmp_path, monkeypatch, capsys) -> None:
    more = ("--sparsity", "0.3", "--save-steps", "2")
    assert main(command(place, tmp_path / "whole", *more, name="prune")) == 0
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    assert main(command(place, tmp_path / "out", *more, name="prune")) == 130
    monkeypatch.undo()
    assert main(command(place, tmp_path / "out", "--resume", *more, name="prune")) == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert (tmp_path / "whole" / "ranks.json").read_bytes() == (tmp_path / "out" / "ranks.json").read_bytes()


def test_units_and_too_high_a_rank(place, tmp_path, capsys) -> None:
    assert main(command(place, tmp_path / "out", "--sparsity", "0.3", name="prune", init_rank=40)) == 2
    assert "k_proj is 32 x 64, so a rank above 32 adds nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_processes(place, tmp_path) -> None:
    done = launch(2, "-m", "secateur", *command(place, tmp_path / "out", "--criterion", "sparsegpt"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("rank 12 -> 3") == 1


def adapters(folder):
    """Folders with adapters that cannot be pruned."""
    kinds = {"dora": {"use_dora": True}, "patterned": {"rank_pattern": {"q_proj": 2}}}
    for name, options in (kinds | {"pissa": {"init_lora_weights": "pissa"}}).items():
        lora = LoraConfig(r=12, target_modules=["q_proj", "v_proj"], **options)
        get_peft_model(tiny_llama(layers=2), lora).save_pretrained(folder / name)
    (folder / "ia3").mkdir()
    (folder / "ia3" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rank", "13"), "--rank 13 is above --init-rank 12"),
        (("--rank", "0"), "--rank is 0"),
        (("--k1", "2"), "--k1 and --k2 go together"),
        (("--k1", "2", "--k2", "0"), "--k2 is 0"),
        (("--k1", "5", "--k2", "2"), "the run has 14 steps: give --steps"),
        (("--init-rank", "64"), "k_proj is 32 x 64, so a rank above 32 adds nothing"),
        (("--lora-init", "pissa"), "add --merge"),
        (("--criterion", "gradeint"), "did you mean 'gradient'"),
        (("--criterion", "sparsegpt", "--recovery", "newton+compensate"), "this cut by the activations'"),
        (("--criterion", "taylor", "--basis", "singular"), "use --basis given"),
        (("--adapter", "{pissa}"), "began with init_lora_weights='pissa'"),
        (("--damping", "0"), "--damping is 0"),
        (("--fisher-decay", "1"), "--fisher-decay is 1"),
        (("--adapter", "{dora}"), "is DoRA: only plain LoRA"),
        (("--adapter", "{ia3}"), "is IA3: only plain LoRA"),
        (("--adapter", "{patterned}"), "equal ranks"),
        (("--adapter", "{broken}"), "cannot be read"),
        (("--adapter", "{nothing}"), "no adapter_config.json there"),
    ],
)
def test_bad_input(place, tmp_path, capsys, more, message) -> None:
    adapters(tmp_path)
    names = {name: str(tmp_path / name) for name in ("dora", "ia3", "patterned", "pissa", "broken", "nothing")}
    given = [word.format(**names) if word.startswith("{") else word for word in more]
    assert main(command(place, tmp_path / "out", *given)) == 2
    printed = capsys.readouterr()
    assert message.lower() in printed.err.lower()
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_too_short_a_run_says_how_long_it_must_be(place, tmp_path, capsys) -> None:
    assert main(command(place, tmp_path / "a", "--k1", "5", "--k2", "2")) == 2
    needed = int(capsys.readouterr().err.split("give --steps ")[1].split()[0])
    base = command(place, tmp_path / "a", "--k1", "5", "--k2", "2")
    base[base.index("--steps") + 1] = str(needed)
    assert main(base) == 0


def test_an_adapter_for_engines_has_one_rank(place, tmp_path, capsys) -> None:
    """It is verified as any is, against what was trained: with each layer's own rank and scaling."""
    out = tmp_path / "out"
    assert main(command(place, out, "--allocation", "global", "--rslora", "--adapter-for", "vllm", "--lr", "5e-2")) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] > 3
    assert not (config["rank_pattern"])
    assert not (config["alpha_pattern"])
    assert not (config["use_rslora"])
    assert {min(t.shape) for t in load_file(out / "adapter_model.safetensors").values()} == {config["r"]}
    assert json.loads((out / "result.json").read_text())["adapter"]["mean_rank"] == 3
    printed = capsys.readouterr()
    assert "would take it" not in printed.err + (out / "README.md").read_text()
    assert main(command(place, tmp_path / "x", "--adapter-for", "vllm", "--merge")) == 2
    assert "--merge writes no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, ""),
        ({"use_rslora": True}, "llama.cpp"),
        ({"alpha_pattern": {"q_proj": 5}}, "vLLM before 0.32 and llama.cpp"),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}, "llama.cpp"),
        ({"rank_pattern": {"q_proj": 2}}, "vLLM before 0.32"),
    ],
)
def test_engines_that_know_one_scaling_are_named(more, said) -> None:
    """vLLM: alpha over the rank of the configuration; llama.cpp: over that of the layer."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **more)
    words = other_readers(get_peft_model(tiny_llama(layers=1), lora))
    named = words.removeprefix("this adapter's scaling is not one for all layers, as ").partition(" would take it")[0]
    assert named == said
