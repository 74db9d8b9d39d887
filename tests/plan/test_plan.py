"""`secateur plan`: counts that a run reproduces, memory that a run takes."""

import json
import math
import time

import pytest
import torch
from live import LiveBytes
from peft import LoraConfig, get_peft_model
from tiny import save_tiny, tiny_llama
from transformers import AutoConfig

from secateur import Pruner
from secateur.checkpoint.verify import Verified
from secateur.cli import main
from secateur.config.options import build
from secateur.config.speed import PlanConfig
from secateur.models.benchmark import matmul_flops_per_s
from secateur.models.loading import load_config
from secateur.models.source import resolve_model
from secateur.plan.footprint import export_bytes
from secateur.plan.timing import units_gone
from secateur.pruning.compensation.cost import refit_bytes
from secateur.training.loss import causal_lm_loss
from secateur.training.prepare import plan_budget

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    save_tiny(folder / "model", layers=3, heads=8, kv_heads=4)
    (folder / "text.txt").write_text(WORDS * 60)
    return folder


@pytest.mark.parametrize("allocation", ["uniform", "protected", "global", "search", "layers"])
def test_a_run_does_what_the_plan_says(place, tmp_path, capsys, allocation) -> None:
    options = [
        "--model", str(place / "model"), "--sparsity", "0.25", "--seq-len", "32", "--batch-size", "2", "--dtype",
        "float32", *(["--units", "layers"] if allocation == "layers" else ["--allocation", allocation]),
    ]  # fmt: skip
    if allocation == "search":
        options += ["--search-evaluations", "14", "--calibration-tokens", "128"]
    assert main(["plan", *options, "--json", str(tmp_path / "plan.json")]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    printed = capsys.readouterr().out
    assert f"{planned['after']['parameters']:,}" in printed
    run = ["prune", *options, "--data", str(place / "text.txt"), "--output", str(tmp_path / "out"), "--steps", "10"]
    assert main([*run, "--frequency", "2"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert planned["before"]["parameters"] == result["dense"]["parameters"]
    sizes = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    widths = [size["intermediate_size"] for size in sizes.get("secateur_layers") or [sizes]]
    if allocation == "layers":
        assert "1 of 3 layers go" in printed
        assert sizes["num_hidden_layers"] == 2
        assert "layers 2 of 3 (counted from 0), 33.33% of the prunable" in capsys.readouterr().out
        assert "layers" in (tmp_path / "out" / "report.html").read_text()
    else:
        assert math.gcd(*widths) % planned["ffn_widths"]["multiple_of"] == 0
        assert f"FFN widths: {planned['ffn_widths']['words']}" in printed
    if allocation == "search":
        assert planned["memory"]["search"] == 128 * 128 * 4
        assert result["search"]["tokens"] == 128
        assert "searched among 14 candidates on 128 tokens" in capsys.readouterr().out
    if allocation in ("global", "search"):  # to within a unit
        assert planned["after"]["parameters"] == pytest.approx(result["pruned"]["parameters"], rel=0.01)
        return
    assert planned["after"]["parameters"] == result["pruned"]["parameters"]
    assert planned["sparsity"] == result["sparsity"]["reached"]
    head = 2 * 32 * 64 * 128  # the output head is no part of the decoder's linears
    for when, model in (("before", "dense"), ("after", "pruned")):
        assert planned[when]["decoder_flops"] == result["speed"][model]["flops"] - head


def test_warns_when_the_machine_has_less(place, capsys) -> None:
    options = ["--model", str(place / "model"), "--sparsity", "0.2", "--seq-len", "32", "--batch-size", "2"]
    assert main(["plan", *options, "--device-memory", "100kB"]) == 0
    assert "WARNING: that is more than the 100.0 kB" in capsys.readouterr().out
    assert main(["plan", *options, "--device-memory", "1GB"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert main(["plan", *options, "--sparsity", "0.99"]) == 2
    assert main(["plan", *options, "--device-memory", "much"]) == 2
    assert "--device-memory is 'much': give a number with a unit" in capsys.readouterr().err


def test_the_time_is_the_flops_over_the_measured_speed(place, tmp_path, capsys) -> None:
    options = ["plan", "--model", str(place / "model"), "--sparsity", "0.5", "--seq-len", "32", "--batch-size", "2"]
    assert main([*options, "--json", str(tmp_path / "plan.json"), "--steps", "100", "--criterion", "taylor"]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())["time"]
    speed = found["matmul_flops_per_s"] * found["training_efficiency"]
    assert found["seconds"] == {name: pytest.approx(count / speed) for name, count in found["flops"].items()}
    for step, parts in found["flops_by_part"].items():
        assert found["flops"][step] == sum(parts.values())
    assert found["flops_by_part"]["first_step"]["scoring"] > 0 == found["flops_by_part"]["last_step"]["scoring"]
    assert 100 * found["flops"]["last_step"] < found["flops"]["run"] < 100 * found["flops"]["first_step"]
    assert "100 steps" in capsys.readouterr().out
    assert main(options) == 0
    assert "Give --steps for the whole run." in capsys.readouterr().out
    assert main([*options, "--steps", "100", "--prune-end", "200"]) == 2
    assert "--prune-end 200 is step 200 of a run of 100" in capsys.readouterr().err


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_is_gone_for_the_time_is_what_the_budget_removes(place, allocation) -> None:
    config = build(PlanConfig, {"model": str(place / "model"), "sparsity": 0.3, "allocation": allocation})
    budget = plan_budget(config, load_config(resolve_model(config.model))).budget
    gone = units_gone(budget)
    assert sum(gone[pool.name] * pool.unit_params for pool in budget.units.pools) == pytest.approx(
        budget.removed_params, abs=1
    )


def test_the_speed_of_products_is_measured_briefly() -> None:
    began = time.process_time()
    speed = matmul_flops_per_s([(64, 96), (9000, 64)], tokens=256, dtype=torch.float32, device=torch.device("cpu"))
    assert speed > 0
    assert time.process_time() - began < 2


@pytest.fixture(scope="module")
def bare(place):
    """A LoRA model of the plan's shape, in training."""
    model = get_peft_model(tiny_llama(layers=3, heads=8, kv_heads=4), LoraConfig(r=8, target_modules="all-linear"))
    return model.train()


def planned_memory(place, tmp_path, *more) -> dict:
    options = ["plan", "--model", str(place / "model"), "--sparsity", "0.25", "--seq-len", "32", "--batch-size", "2"]
    options += ["--dtype", "float32", "--criterion", "lora"]  # unless `more` says another: the usual one refits
    assert main([*options, *more, "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.parametrize(
    ("part", "options"),
    [("scoring", {"criterion": "taylor-accumulated"}), ("moments", {"criterion": "gate", "compensate": "lstsq"})],
)
def test_what_scoring_keeps_is_what_a_step_holds(place, bare, tmp_path, capsys, part, options) -> None:
    pruner = Pruner(bare, sparsity=0.25, total_steps=100, prune_start=0.1, **options)
    ids = torch.randint(3, 99, (2, 32))
    for _ in range(2):  # the first step makes the averages
        held = pruner.scorer.statistics
        causal_lm_loss(bare(input_ids=ids, use_cache=False), ids).backward()
        if part == "scoring":
            found = sum(gradient.nbytes for gradient in held._weight_grads.values())
        else:
            found = sum(m.second.nbytes for m in [*held.moments.values(), *held._seen.values()])
        pruner.observe()
        bare.zero_grad()
    pruner.close()
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    memory = planned_memory(place, tmp_path, *given)["memory"]
    assert memory[part] == found > 0
    assert f"  {part}" in capsys.readouterr().out
    plain = planned_memory(place, tmp_path)["memory"]
    assert memory["total"] - plain["total"] == memory[part]
    assert plain[part] == 0
    if part == "scoring":  # in the host's memory, which a GPU's does not count
        assert planned_memory(place, tmp_path, *given, "--offload-gradients")["memory"]["scoring"] == 0


def test_a_refit_in_sequence_counts(place, tmp_path, capsys) -> None:
    """A cut comes when a step is over, so memory is the larger of the two; its time is on top."""
    plain, few, many = (
        planned_memory(place, tmp_path, "--steps", "100", "--frequency", "25", *more)
        for more in (
            [],
            ["--compensate", "sequential"],
            ["--compensate", "sequential", "--calibration-tokens", "90000"],
        )
    )
    memory = many["memory"]
    over = sum(memory[part] for part in ("activations", "logits", "allocator"))
    units = plan_budget(
        build(PlanConfig, {"model": str(place / "model")}), load_config(resolve_model(many["model"]))
    ).budget
    assert memory["refit"] == refit_bytes(units.units, 64, 90000, 4) - over > 0
    assert memory["total"] - plain["memory"]["total"] == memory["refit"]
    assert "a cut that refits in sequence" in capsys.readouterr().out
    assert few["memory"]["refit"] < memory["refit"]
    flops = many["time"]["flops"]
    assert flops["run"] - plain["time"]["flops"]["run"] == pytest.approx(2 * flops["cut"])
    assert flops["cut"] > 90000 * 2 * 2 * many["prunable_parameters"]


@pytest.mark.parametrize("criterion", ["learned", "projected", "compresso"])
def test_what_masks_learn_from_is_what_a_step_keeps(place, bare, tmp_path, criterion) -> None:
    """Beside a plain step: what masks are put on once more (inputs, or outputs), and the masks themselves."""

    def kept() -> int:
        seen: dict[int, int] = {}
        held = []  # so that no address comes twice

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held.append(tensor)
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            bare(input_ids=torch.randint(3, 99, (2, 32)), use_cache=False)
        return sum(seen.values())

    plain = kept()
    pruner = Pruner(bare, sparsity=0.25, total_steps=100, prune_start=0.1, criterion=criterion)
    masks = sum(column.nbytes for column in pruner.scorer.masks._held.values())
    found = kept() - plain - masks
    pruner.close()
    memory = planned_memory(place, tmp_path, "--criterion", criterion)["memory"]
    assert memory["masks"] == found > 0
    again = planned_memory(place, tmp_path, "--criterion", criterion, "--gradient-checkpointing")["memory"]
    assert again["masks"] == found // 3, "of one of three layers"


def test_a_teachers_logits_count(place, tmp_path) -> None:
    found = planned_memory(place, tmp_path, "--distill", "0.5", "--no-shrink")["memory"]
    assert found["teacher"] == 4 * 2 * 32 * 128
    assert found["total"] - planned_memory(place, tmp_path)["memory"]["total"] == found["teacher"]


def test_what_writing_takes_is_what_it_holds(place, bare, tmp_path, capsys, monkeypatch) -> None:
    plan = planned_memory(place, tmp_path)
    pruner = Pruner(bare, sparsity=0.25, total_steps=100, prune_start=0.1, shrink=False)
    scores = {pool.name: torch.rand(pool.size) for pool in pruner.units.pools}
    pruner.pruned.keep = pruner.budget.select(scores, pruner.keep, 1.0)
    pruner.masks.update(pruner.keep)
    bare.to(torch.bfloat16)
    monkeypatch.setattr("secateur.checkpoint.export.verify", lambda checks: [Verified("x", 0.0, 0.0)])
    with LiveBytes([*bare.parameters(), *bare.buffers()]) as live:
        pruner.export(tmp_path / "out", probe_ids=torch.arange(17).unsqueeze(0))  # logits would count
    masked = export_bytes(sum(p.numel() for p in bare.parameters()), plan["after"]["parameters"], torch.bfloat16)
    assert live.peak == pytest.approx(masked, rel=0.15)
    pruner.close()
    bare.float()
    lora = sum(p.numel() for name, p in bare.named_parameters() if "lora_" in name)
    assert plan["export"]["bytes"] == 4 * (2 * plan["after"]["parameters"] + lora)  # shrunk: both are small
    capsys.readouterr()
    monkeypatch.setattr("secateur.plan.command.FILE_BYTES", 0)
    planned_memory(place, tmp_path, "--gradient-checkpointing", "--batch-size", "1", "--seq-len", "8", "--no-shrink")
    printed = capsys.readouterr().out
    assert "writing the result takes about" in printed
    assert "--stream-export takes about" in printed
