"""Where the time of a training step goes: PyTorch's profiler, operators gathered into kinds."""

from typing import Any

import torch
from cost_cases import Stepper
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "copies and casts": ("copy_", "_to_copy", "cat", "clone", "contiguous"),
    "element-wise": (
        "mul",
        "add",
        "sub",
        "div",
        "silu",
        "sigmoid",
        "pow",
        "rsqrt",
        "neg",
        "exp",
        "log",
        "sqrt",
        "fill",
    ),
    "sums and norms": ("sum", "mean", "amax", "norm", "max"),
    "gathering and scattering": ("index", "gather", "scatter", "embedding"),
}


def profile_step(stepper: Stepper, case: str) -> dict[str, Any]:
    """Shares of a step's operator time by kind, and the ten dearest operators by the shapes of their inputs."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with stepper.watched(case):
        stepper.step()
        with profile(activities=activities, record_shapes=True) as profiled:
            seconds = stepper.step()
    times = {}
    for event in profiled.key_averages(group_by_input_shape=True):
        if event.device_type != DeviceType.CPU:  # a kernel, whose time its operator has as well
            continue
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        times[event.key, str(event.input_shapes)] = (own / 1e6, event.count)
    total = sum(own for own, _ in times.values())
    kinds = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for (name, _), (own, _) in times.items():
        kinds[kind_of(name)] += own / total
    dearest = sorted(times.items(), key=lambda item: -item[1][0])[:10]
    return {
        "seconds": seconds,
        "operator_seconds": total,
        "shares": kinds,
        "dearest": [
            {"operator": name, "shapes": shapes, "seconds": own, "calls": calls}
            for (name, shapes), (own, calls) in dearest
        ],
    }


def kind_of(operator: str) -> str:
    """The kind that an operator's name belongs to."""
    name = operator.removeprefix("aten::").removeprefix("_")
    for kind, words in KINDS.items():
        if any(name == word or name.startswith((word + "_", word + ".")) or (len(word) > 6 and word in name)
               for word in words):  # fmt: skip
            return kind
    return "the rest"
