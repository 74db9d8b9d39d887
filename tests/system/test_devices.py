"""Which device a command computes on: what is chosen, what is refused before any work, what Trainer is told."""

import os
import re

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from machine import Machine

from secateur.config.prune import PruneConfig
from secateur.config.run import device_faults
from secateur.models.devices import compute_dtype, default_device, device_of, with_room
from secateur.parallel.distributed import join, part_ways
from secateur.system.errors import InputError
from secateur.system.launcher import launched
from secateur.system.machine import devices
from secateur.system.machine.devices import check_number, device_called, doubled, kind_of, own_randomness, precise
from secateur.system.records import environment
from secateur.training import trainer
from secateur.training.job import check_device


@pytest.mark.parametrize(
    ("kind", "count", "name", "found"),
    [
        (None, 0, "auto", "cpu"), ("cuda", 1, "auto", "cuda:0"), ("mps", 1, "auto", "mps:0"), ("cuda", 2, "cpu", "cpu"),
        ("cuda", 2, "cuda", "cuda:0"), ("cuda", 2, "cuda:1", "cuda:1"), ("xpu", 2, "xpu:1", "xpu:1"),
    ],
)  # fmt: skip
def test_a_device_that_is_there_is_chosen(monkeypatch, kind, count, name, found) -> None:
    Machine(monkeypatch, kind, count)
    assert device_called(name) == torch.device(found)


@pytest.mark.parametrize(
    ("kind", "count", "name", "words"),
    [
        (None, 0, "cuda", "--device cuda: this PyTorch (.*) is built without it .* Here there is no accelerator"),
        (None, 0, "mps", "--device mps: this PyTorch .*: use --device auto"),
        ("cuda", 1, "xpu", r"--device xpu: .* Here there is cuda:0 \(Fast One\): use --device auto"),
        ("cuda", 2, "cuda:2", r"--device cuda:2: here there is cuda:0 to cuda:1 \(Fast One\): choose one of these"),
    ],
)
def test_one_that_is_not_there_is_refused_by_name(monkeypatch, kind, count, name, words) -> None:
    Machine(monkeypatch, kind, count)
    with pytest.raises(InputError, match=words):
        device_called(name)


def test_a_driver_that_is_missing_is_told_from_a_build_without_it(monkeypatch) -> None:
    Machine(monkeypatch, None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no such device .is its driver there"):
        device_called("cuda")


def test_a_name_that_no_device_has(monkeypatch) -> None:
    assert "Did you mean 'cuda'" in device_faults("cuba")[0]
    for name in (
        "cuda:",
        "cuda:-1",
        "cuda:x",
        "cuda:1:2",
        "cpu:0",
        "auto:0",
        "mps:1",
        "cuda:\u0661",
        "",
        "CUDA",
        "cuda:9999",
    ):
        assert len(device_faults(name)) == 1, name
    for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps", "xpu", "xpu:3"):
        assert device_faults(name) == [], name


def test_every_process_has_its_own_device(monkeypatch) -> None:
    Machine(monkeypatch, "cuda", 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert device_called("auto") == device_called("cuda") == torch.device("cuda", number)
        assert device_called("cpu") == torch.device("cpu")
    for refused in (device_called, check_number, lambda name: part_ways(["auto", name])):
        with pytest.raises(InputError, match="--device cuda:1: each of the 3 processes takes .*: use --device cuda"):
            refused("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 of this machine has no device of its own, as there is cuda:0 to"):
        device_called("auto")


def test_several_processes_on_a_kind_that_cannot_talk(monkeypatch) -> None:
    Machine(monkeypatch, "mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--device mps: several processes cannot train on it together: use --device c"):
        device_called("mps")
    assert device_called("auto") == torch.device("cpu")


@pytest.mark.parametrize(("visible", "own"), [(None, "1"), ("4,6", "6"), ("GPU-a,GPU-b", "GPU-b")])
def test_a_comparisons_process_sees_its_own_gpu_alone(monkeypatch, visible, own) -> None:
    Machine(monkeypatch, "cuda")
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "RANK": "1", "CUDA_VISIBLE_DEVICES": visible}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(None, 1, 2)]))
    assert part_ways(["cuda"]).number == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert str(default_device()) == "cuda:0", "the only one that it sees"
    assert launched() == 1


def test_a_lost_process_is_an_error_under_nccl_too(monkeypatch) -> None:
    machine, asked = Machine(monkeypatch, "cuda", 2), {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **how: asked.update(backend=backend))
    join(default_device())
    assert (asked["backend"], os.environ["TORCH_NCCL_BLOCKING_WAIT"]) == ("nccl", "1")
    assert machine.own == torch.device("cuda", 1)
    join(torch.device("cpu"))
    assert asked["backend"] == "gloo", "on the CPU of a machine with GPUs"


LACKS = {
    ("mps", "float16", None): "--dtype float16 trains on a GPU only",
    (None, "float16", None): "--dtype float16 trains on a GPU only",
    ("mps", "bfloat16", None): "--dtype bfloat16: mps has it from macOS 14 on: use --dtype float32",
    ("mps", "auto", "4bit"): "--load-in 4bit: bitsandbytes has no products for mps: use --device cpu",
}


@pytest.mark.parametrize(("kind", "dtype", "load_in"), LACKS)
def test_what_a_device_lacks_is_refused(monkeypatch, kind, dtype, load_in) -> None:
    Machine(monkeypatch, kind)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major < 14)
    config = PruneConfig(model="m", data=("d",), output="out", dtype=dtype, load_in=load_in)
    with pytest.raises(InputError, match=re.escape(LACKS[kind, dtype, load_in])):
        check_device(config)


def test_what_a_device_has_is_not(monkeypatch) -> None:
    Machine(monkeypatch, "cuda")
    for dtype in ("float16", "bfloat16", "float32"):
        check_device(PruneConfig(model="m", data=("d",), output="out", dtype=dtype, load_in="4bit"))
    Machine(monkeypatch, "mps")
    assert compute_dtype("auto", device_of(PruneConfig(model="m", data=("d",), output="out"))) == torch.float32
    assert not kind_of(torch.device("privateuseone")).pins_memory, "of a kind that nobody tried, the least is expected"


def test_sums_in_float64_where_a_device_has_none(monkeypatch) -> None:
    value = torch.full((2,), 1 / 3)
    assert torch.equal(doubled(value), value.double())
    without = torch.device("meta")
    monkeypatch.setitem(devices.KINDS, "meta", devices.KINDS["mps"])
    assert (precise(without), precise(value.device)) == (torch.device("cpu"), value.device)
    with pytest.raises(NotImplementedError, match="out of meta tensor"):
        doubled(value.to(without))  # brought over, of which there is nothing


def test_another_device_where_the_first_has_no_room(monkeypatch) -> None:
    cuda = torch.device("cuda", 1)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (100 if device == cuda else 0, 500))
    assert (with_room(cuda, 100), with_room(cuda, 101)) == (cuda, torch.device("cpu"))
    assert devices.total_bytes(cuda) == 500
    assert with_room(torch.device("cpu"), 2**60) == torch.device("cpu"), "nothing is known of its room"


def test_random_states_are_as_they_were() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    with own_randomness(torch.device("cpu")):
        torch.manual_seed(5)
        torch.rand(3)
    assert torch.equal(torch.rand(2), wanted)


def test_a_record_names_what_computed(monkeypatch) -> None:
    Machine(monkeypatch, "cuda", 2)
    assert environment(torch.device("cuda", 1))["device"] == "cuda:1 (Fast One)"
    assert environment(torch.device("cpu"))["device"] == environment()["cpu"], "not the GPU that was there"
    assert environment()["gpus"] == ["Fast One"] * 2


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    """Trainer's options on a machine with four GPUs, of a model on one of them."""
    machine = Machine(monkeypatch, "cuda", 4)
    config = PruneConfig(model="m", data=("d",), output=str(tmp_path / "out"), batch_size=2)

    def made(device: str):
        return machine, trainer.training_arguments(config, 10, torch.float32, tmp_path, torch.device(device))

    yield made
    AcceleratorState._reset_state(reset_partial_state=True)


def test_trainer_stays_where_the_model_is(arguments, monkeypatch) -> None:
    """It takes the first GPU, or as many as there are: the model's own is meant, and one process has one device."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    machine, found = arguments("cuda:1")
    assert (found.device, machine.own, PartialState().device) == (torch.device("cuda:1"),) * 3
    assert asked == [torch.device("cuda:0")], "transformers' choice, taken back since"
    assert (found.n_gpu, found.train_batch_size, found.use_cpu, found.dataloader_pin_memory) == (1, 2, False, True)
    assert trainer.ACCELERATE_DEVICE not in os.environ


def test_trainer_stays_on_the_cpu_of_a_machine_with_gpus(arguments, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    machine, found = arguments("cpu")
    assert (found.device, PartialState().device, machine.own) == (torch.device("cpu"), torch.device("cpu"), None)
    assert (found.use_cpu, found.dataloader_pin_memory) == (True, False)


def test_a_device_that_trainer_does_not_take_is_said(arguments, monkeypatch) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_mps_available", lambda: True)
    with pytest.raises(InputError, match="transformers trains on mps here, and --device cuda:1 is asked for"):
        arguments("cuda:1")
