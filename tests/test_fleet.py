"""Memory and traffic of several devices add up; one device is the estimate that there was."""

import json
import time
from dataclasses import asdict

import pytest
from transformers import LlamaConfig

from secateur.cli import main
from secateur.fleet import fleet_record, replicated, sent_bytes, sharded
from secateur.footprint import Footprint

MEMORY = Footprint(
    weights=1001, lora=20, gradients=20, optimizer=40, activations=300, logits=50, allocator=0
)  # fmt: skip


def test_the_parts_add_up() -> None:
    share = sharded(MEMORY, 4, largest_bytes=120)
    assert (share.weights, share.gathered) == (251, 120)  # rounded up: one device has the rest
    assert share.total == sum(asdict(share).values()) == 251 + 120 + 430
    assert replicated(MEMORY).total == MEMORY.total == 1431


def test_one_device_is_the_present_estimate() -> None:
    assert sharded(MEMORY, 1, largest_bytes=120) == replicated(MEMORY)
    assert sharded(MEMORY, 1, largest_bytes=120).total == MEMORY.total
    assert set(sent_bytes(MEMORY, 1, 2).values()) == {0}


def test_traffic_is_that_of_rings() -> None:
    # Forward and backward of 3 micro-batches gather the 3/4 that others hold; LoRA's gradients go around twice.
    assert sent_bytes(MEMORY, 4, 3) == {"all_gather": round(2 * 3 * 0.75 * 1001), "all_reduce": 30}


def test_what_fits_is_told_for_both() -> None:
    record = fleet_record(MEMORY, devices=4, largest_bytes=120, accumulation=1, available_bytes=801)
    assert (record["replicated"]["fits"], record["sharded"]["fits"]) == (False, True)
    assert record["sent_bytes_per_step"]["replicated"] == {"all_reduce": 30}


@pytest.fixture(scope="module")
def llama_65b(tmp_path_factory):
    """A folder with the configuration alone."""
    folder = tmp_path_factory.mktemp("large")
    LlamaConfig(
        hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64, vocab_size=32000,
        max_position_embeddings=2048, dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_large_model_is_planned_from_its_configuration(llama_65b, tmp_path, capsys) -> None:
    options = ["plan", "--model", str(llama_65b), "--target-params", "50B", "--batch-size", "1", "--dtype", "bfloat16"]
    options += ["--device-memory", "80GB", "--json", str(tmp_path / "plan.json")]
    started = time.perf_counter()
    assert main([*options, "--devices", "8", "--steps", "1000"]) == 0
    assert time.perf_counter() - started < 60
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["before"]["parameters"] == 65_285_660_672
    assert plan["after"]["parameters"] == pytest.approx(50e9, rel=0.005)
    way, memory = plan["devices"]["sharded"], plan["memory"]
    assert way["weights"] == pytest.approx(memory["weights"] / 8, abs=1)
    assert way["gathered"] == 2 * (4 * 8192**2 + 3 * 8192 * 22016 + 2 * 8192)  # a decoder layer in bfloat16
    parts = (*(key for key in memory if key not in ("device", "dtype", "total")), "gathered")
    assert way["total"] == sum(way[name] for name in parts)
    assert plan["devices"]["replicated"]["total"] == memory["total"] > 80e9 > way["total"]
    assert plan["time"]["seconds"]["run"] > 1000 * plan["time"]["seconds"]["last_step"]
    printed = capsys.readouterr().out
    assert "fits in 80.0 GB" in printed
    assert "which secateur does not do yet" in printed
    assert "WARNING" not in printed


def test_bad_numbers_of_devices(llama_65b, capsys) -> None:
    assert main(["plan", "--model", str(llama_65b), "--devices", "0"]) == 2
    assert "--devices is 0: it must be at least 1." in capsys.readouterr().err
