"""What a training step takes of each of several devices, and what they send each other. Arithmetic only.

Replicated: every device holds the whole model, as `secateur prune` does in several processes. Sharded: each holds an
equal share of the frozen base, and gathers one part (a decoder layer, the embedding or the head) at a time, forward and
again backward, as FSDP2 does; LoRA, its gradients and moments, and activations are whole on every device.
"""

from dataclasses import asdict, dataclass
from typing import Any

from .footprint import Footprint


@dataclass(frozen=True)
class DeviceMemory(Footprint):
    """Bytes at the peak of a training step on one of several devices, by part."""

    gathered: int
    """The largest part that is gathered at once (a prefetch of the next one comes on top)."""


def replicated(memory: Footprint) -> DeviceMemory:
    """Every device holds everything."""
    return DeviceMemory(**asdict(memory), gathered=0)


def sharded(memory: Footprint, devices: int, largest_bytes: int) -> DeviceMemory:
    """Every device holds a share of the frozen base; one device holds all of it and gathers nothing.

    Args:
        largest_bytes: of the largest part that is gathered at once.
    """
    parts = asdict(memory) | {"weights": -(-memory.weights // devices)}
    return DeviceMemory(**parts, gathered=largest_bytes if devices > 1 else 0)


def sent_bytes(memory: Footprint, devices: int, accumulation: int) -> dict[str, int]:
    """Bytes that each device sends (and receives) per optimiser step, in rings.

    `all_gather`: (N - 1)/N of the base's weights, forward and backward of each micro-batch; when sharded only.
    `all_reduce`: 2·(N - 1)/N of LoRA's gradients, once.
    """
    others = (devices - 1) / devices
    return {
        "all_gather": round(2 * accumulation * others * memory.weights),
        "all_reduce": round(2 * others * memory.gradients),
    }


def fleet_record(
    memory: Footprint, *, devices: int, largest_bytes: int, accumulation: int, available_bytes: int
) -> dict[str, Any]:
    """Both ways side by side, and which of them fits."""
    sent = sent_bytes(memory, devices, accumulation)
    ways = {"replicated": replicated(memory), "sharded": sharded(memory, devices, largest_bytes)}
    return {
        "count": devices,
        **{
            name: asdict(each) | {"total": each.total, "fits": each.total <= available_bytes}
            for name, each in ways.items()
        },
        "sent_bytes_per_step": {"replicated": {"all_reduce": sent["all_reduce"]}, "sharded": sent},
    }
