"""Memory and traffic of several devices add up; one device is the estimate that there was."""

import json
import time
from dataclasses import asdict

import pytest
from transformers import LlamaConfig

from secateur.cli import main
from secateur.plan.fleet import fleet_record, not_sharded, replicated, sent_bytes, sharded
from secateur.plan.footprint import Footprint

MEMORY = Footprint(
    weights=1001, lora=20, gradients=20, optimizer=40, activations=300, logits=50, allocator=0
)  # fmt: skip


def test_the_parts_add_up() -> None:
    share = sharded(MEMORY, 4, largest_bytes=120)
    assert (share.weights, share.gathered) == (251, 120)  # rounded up: one device has the rest
    assert share.total == sum(asdict(share).values()) == 251 + 120 + 430
    assert sharded(MEMORY, 4, largest_bytes=120, whole_bytes=201).weights == 201 + 200
    assert replicated(MEMORY).total == MEMORY.total == 1431


def test_one_device_is_the_present_estimate() -> None:
    assert sharded(MEMORY, 1, largest_bytes=120) == replicated(MEMORY)
    assert sharded(MEMORY, 1, largest_bytes=120).total == MEMORY.total
    assert set(sent_bytes(MEMORY, 1, 2).values()) == {0}


def test_traffic_is_that_of_rings() -> None:
    # Forward and backward of 3 micro-batches gather the 3/4 that others hold; LoRA's gradients go around twice.
    assert sent_bytes(MEMORY, 4, 6) == {"all_gather": round(6 * 0.75 * 1001), "all_reduce": 30}
    assert sent_bytes(MEMORY, 4, 6, whole_bytes=201)["all_gather"] == 6 * 600


def test_what_fits_and_how_long_it_takes_is_told_for_both() -> None:
    time = {"steps": 10, "seconds": {"first_step": 2.0, "run": 15.0}}
    options = {"devices": 4, "largest_bytes": 120, "gathers": 2, "available_bytes": 801, "time": time, "bandwidth": 100}
    record = fleet_record(MEMORY, **options)
    assert (record["replicated"]["fits"], record["sharded"]["fits"]) == (False, True)
    assert record["sent_bytes_per_step"]["replicated"] == {"all_reduce": 30}
    sent = 30 + round(2 * 0.75 * 1001)
    assert record["seconds"]["replicated"] == pytest.approx({"first_step": 2.3, "run": 18.0})
    assert record["seconds"]["sharded"] == pytest.approx({"first_step": 2 + sent / 100, "run": 15 + sent / 10})
    refused = fleet_record(MEMORY, **options, refused=not_sharded(experts=True, quantised=False))
    assert not refused["sharded"]["fits"]


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
    options += ["--device-tflops", "300", "--link-bandwidth", "100GB"]
    started = time.process_time()
    assert main([*options, "--devices", "8", "--steps", "1000"]) == 0
    assert time.process_time() - started < 60  # a busy machine is not its fault
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["before"]["parameters"] == 65_285_660_672
    assert plan["after"]["parameters"] == pytest.approx(50e9, rel=0.005)
    way, memory = plan["devices"]["sharded"], plan["memory"]
    norms = 2 * 161 * 8192  # stay whole
    assert way["weights"] == pytest.approx((memory["weights"] - norms) / 8 + norms, rel=1e-6)
    assert way["gathered"] == 2 * 8192 * 32000  # the embedding in bfloat16; the largest linear has 22,016 columns
    parts = (*(key for key in memory if key not in ("device", "dtype", "total")), "gathered")
    assert way["total"] == sum(way[name] for name in parts)
    assert plan["devices"]["replicated"]["total"] == memory["total"] > 80e9 > way["total"]
    assert plan["time"]["seconds"]["run"] > 1000 * plan["time"]["seconds"]["last_step"]
    assert plan["time"]["matmul_flops_per_s"] == 300e12
    sent = plan["devices"]["sent_bytes_per_step"]["sharded"]
    assert sent["all_gather"] == pytest.approx(2 * 7 / 8 * 2 * 65.28e9, rel=1e-3)
    seconds = plan["devices"]["seconds"]["sharded"]["first_step"] - plan["time"]["seconds"]["first_step"]
    assert seconds == pytest.approx(sum(sent.values()) / 100e9)
    printed = capsys.readouterr().out
    assert "fits in 80.0 GB" in printed
    assert "as secateur.parallel.shard_base does" in printed
    assert "traffic at 100.0 GB/s" in printed
    assert "Time on a device (bfloat16)" in printed
    assert "WARNING" not in printed


def test_bad_numbers_of_devices(llama_65b, capsys) -> None:
    assert main(["plan", "--model", str(llama_65b), "--devices", "0"]) == 2
    assert "--devices is 0: it must be at least 1." in capsys.readouterr().err
    assert main(["plan", "--model", str(llama_65b), "--link-bandwidth", "0B", "--device-tflops", "0"]) == 2
    assert "--device-tflops is 0.0: it must be above 0, such as 312." in capsys.readouterr().err
