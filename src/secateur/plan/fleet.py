"""What a training step takes of each of several devices, what they send, how long it is. Arithmetic only.

Replicated: every device holds the whole model, as `secateur prune` does in several processes. Sharded: each holds an
equal share of the frozen base, and gathers one linear (or the embedding, or the head) at a time, forward and again
backward, as `parallel.shard_base` does in a loop of one's own; norms, tied embeddings, LoRA, its gradients and moments,
and activations are whole on every device.
"""

from dataclasses import asdict, dataclass
from typing import Any

from .footprint import Footprint


@dataclass(frozen=True)
class DeviceMemory(Footprint):
    """Bytes at the peak of a training step on one of several devices, by part."""

    gathered: int
    """The largest part that is gathered at once; there is no prefetch of the next one."""


def replicated(memory: Footprint) -> DeviceMemory:
    """Every device holds everything."""
    return DeviceMemory(**asdict(memory), gathered=0)


def sharded(memory: Footprint, devices: int, largest_bytes: int, whole_bytes: int = 0) -> DeviceMemory:
    """Every device holds a share of the frozen base; one device holds all of it and gathers nothing.

    Args:
        largest_bytes: of the largest part that is gathered at once.
        whole_bytes: of what of the base stays whole on each.
    """
    parts = asdict(memory) | {"weights": whole_bytes - (whole_bytes - memory.weights) // devices}
    return DeviceMemory(**parts, gathered=largest_bytes if devices > 1 else 0)


def sent_bytes(memory: Footprint, devices: int, gathers: int, whole_bytes: int = 0) -> dict[str, int]:
    """Bytes that each device sends (and receives) per optimiser step, in rings.

    `all_gather`: (N - 1)/N of what is sharded of the base, each of `gathers` times; when sharded only.
    `all_reduce`: 2·(N - 1)/N of LoRA's gradients, once.

    Args:
        gathers: per step; of each micro-batch one forward and one backward, and one where layers are computed again.
    """
    others = (devices - 1) / devices
    return {
        "all_gather": round(gathers * others * (memory.weights - whole_bytes)),
        "all_reduce": round(2 * others * memory.gradients),
    }


def step_seconds(time: dict[str, Any], sent: int, bandwidth: float) -> dict[str, float]:
    """What `time_record` found, and the traffic on top of it, of which none is hidden behind the computation.

    Args:
        time: of one device on its own batch; all devices compute at once.
        sent: bytes of a step at the model's first size, all steps.
        bandwidth: bytes that a device sends in a second.
    """
    steps = {"run": time["steps"] or 1, "cut": 0, "search": 0}
    return {name: seconds + steps.get(name, 1) * sent / bandwidth for name, seconds in time["seconds"].items()}


def not_sharded(*, experts: bool, quantised: bool) -> str | None:
    """Why `shard_base` refuses a model, if it does."""
    return "a mixture of experts" if experts else "a quantised base" if quantised else None


def fleet_record(
    memory: Footprint,
    *,
    devices: int,
    largest_bytes: int,
    gathers: int,
    available_bytes: int,
    time: dict[str, Any],
    bandwidth: float,
    whole_bytes: int = 0,
    refused: str | None = None,
) -> dict[str, Any]:
    """Both ways side by side, and which of them fits.

    Args:
        refused: why the model cannot be sharded.
    """
    sent = sent_bytes(memory, devices, gathers, whole_bytes)
    ways = {"replicated": replicated(memory), "sharded": sharded(memory, devices, largest_bytes, whole_bytes)}
    traffic = {"replicated": {"all_reduce": sent["all_reduce"]}, "sharded": sent}
    return {
        "count": devices,
        **{
            name: asdict(each)
            | {"total": each.total, "fits": each.total <= available_bytes and not (refused and name == "sharded")}
            for name, each in ways.items()
        },
        "not_sharded": refused,
        "sent_bytes_per_step": traffic,
        "link_bytes_per_s": bandwidth,
        "seconds": {name: step_seconds(time, sum(each.values()), bandwidth) for name, each in traffic.items()},
    }
