"""Measuring what heads and widths cost on this device: a few layers of random weights, cut to each size in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.building import empty_model
from ..architecture.depth import Skipped
from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.layout import LayerShape
from ..architecture.units import Units
from ..config.pruning import LAYERS
from ..config.sizes import PREFILL, Timed
from ..models.benchmark import evaluating
from ..models.devices import autocast
from ..system.machine.devices import clock_of, own_randomness, wait_for
from .costs import monotone
from .stack import SMALL_VOCABULARY, Stack, Subject
from .table import Channels, Heads, LayerTimes, Times
from .timing import Decoding

WIDTHS = 10
"""FFN widths that are timed, at equal distances."""
REPEATS, LEAST_REPEATS, SECONDS = 9, 3, 40.0
"""Turns of one thing that is timed; fewer after so many seconds, but never fewer than the second number."""
PROMPT_LAYERS = 3
"""Layers that a prompt is timed on: arithmetic, whose time does not depend on how many there are."""
BEYOND_CACHES = 128_000_000
"""Bytes of the layers that single tokens are timed on: their time is that of reading weights from memory."""
TOKENS = 4
"""Tokens that one turn decodes."""
STEPS = (8, 16, 32, 64)
"""What fast widths may be multiples of; the first that is as fast as the last is taken."""
SLOWER = 1.02
"""By how much a layer of such a width is slower than those beside it where it is not."""

Told = Callable[[int, int], None]
Timer = Callable[[], float]


def alike(model: PreTrainedModel, units: Units) -> list[tuple[int, ...]]:
    """Numbers of the layers that take the same time for the same sizes, the largest layer of each kind first.

    Layers differ by the kind of their attention, as the config names it, and by the class of their FFN.
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    named = getattr(model.config.get_text_config(), "layer_types", None) or [""] * len(units.shapes)
    for number, place in enumerate(units.places):
        layer = model.get_submodule(place.prefix)
        classes = sorted({type(module).__name__ for name, module in layer.named_modules() if name.count(".") < 1})
        kinds.setdefault((str(named[number]), *classes), []).append(number)
    largest = {number: (shape.ffn, shape.heads) for number, shape in enumerate(units.shapes)}
    return [tuple(sorted(found, key=lambda n: (-largest[n][0], -largest[n][1], n))) for found in kinds.values()]


def measure_times(subject: Subject, at: Timed, told: Told = lambda done, of: None) -> tuple[Times, int]:
    """The times of all layers by their sizes, and the step of widths that are fast.

    Raises:
        InputError: the model's layers cannot be timed by themselves.
    """
    empty = empty_model(subject.config, trust_remote_code=subject.trust_remote_code)
    unstack_experts(empty, subject.family)
    units = find_units(empty, subject.family, "none")
    groups = alike(empty, units)
    found, steps, rest_ms = [], [], 0.0
    for number, group in enumerate(groups):

        def part(done: int, of: int, number: int = number) -> None:
            told(number * of + done, len(groups) * of)

        with own_randomness(subject.device), torch.random.fork_rng(devices=[]):
            times, step, rest_ms = _measure_group(subject, units, group, at, part)
        found.append(times)
        steps.append(step)
    return Times(rest_ms, tuple(found)), max(steps)


def _measure_group(
    subject: Subject, units: Units, group: tuple[int, ...], at: Timed, told: Told
) -> tuple[LayerTimes, int, float]:
    """Times of one kind of layer, the step of fast widths, and the time of what is no layer."""
    shape = units.shapes[group[0]]
    bytes_ = (units.attention_params[group[0]] + units.ffn_params[group[0]]) * subject.weights.itemsize
    count = PROMPT_LAYERS if at.kind == PREFILL else -(-BEYOND_CACHES // max(1, bytes_))
    same = [number for number in group if units.shapes[number] == shape][: max(1, count)]
    stack = Stack(subject, same)
    variants = {"rest": stack.rest()} | {"none": stack.without(LAYERS), "dense": stack.model}
    widths, probes, coarse = _widths(shape.ffn, subject.family.ffn_multiple)
    variants |= {f"channels {width}": stack.with_channels(width) for width in {*widths, *probes} if width < shape.ffn}
    sizes = stack.head_counts()
    variants |= {f"heads {heads} {kv}": stack.with_heads(kind, left) for (heads, kv), (kind, left) in sizes.items()}
    variants |= stack.blocks() if subject.family.experts is None else {}
    taken = _take_turns({name: _timer(model, at, subject) for name, model in variants.items()}, told)
    nothing = taken.pop("none").ms
    layer = {
        name: Took(max(0.0, found.ms - nothing) / len(same), found.error / len(same)) for name, found in taken.items()
    }
    every = {*widths, *probes, shape.ffn} if shape.ffn else set()
    by_width = {width: layer.get(f"channels {width}", layer["dense"]) for width in every}
    step = _step({width: found.ms for width, found in by_width.items()}, widths, probes) if probes else coarse
    channels = smooth({width: found for width, found in by_width.items() if width % step == 0 or width == shape.ffn})
    if "channels 0" in layer:
        channels[0] = min(layer["channels 0"].ms, *channels.values())
    times = LayerTimes(
        tuple(sorted(group)),
        _heads(shape, {name: found.ms for name, found in layer.items()}, channels.get(shape.ffn)),
        tuple(Channels(width, ms) for width, ms in sorted(channels.items())),
    )
    return times, step, taken["rest"].ms


def smooth(points: Mapping[int, "Took"]) -> dict[int, float]:
    """Size -> ms that never falls: on a straight line where what was measured does not speak against one.

    It does where the distances to the line are larger than the medians' own errors: then the nearest values that never
    fall are taken.
    """
    sizes = sorted(points)
    if len(sizes) > 2:
        slope, start = statistics.linear_regression(sizes, [points[size].ms for size in sizes])
        away = statistics.fmean((points[size].ms - start - slope * size) ** 2 for size in sizes)
        if slope >= 0 and away <= statistics.fmean(points[size].error ** 2 for size in sizes):
            return {size: max(0.0, start + slope * size) for size in sizes}
    return dict(zip(sizes, monotone([points[size].ms for size in sizes]), strict=True))


def _heads(shape: LayerShape, per_layer: dict[str, float], dense_ms: float | None) -> tuple[Heads, ...]:
    """The times by heads; the dense layer's as it is in the times by width."""
    found = {(shape.heads, shape.kv_heads): per_layer["dense"] if dense_ms is None else dense_ms}
    for name, ms in per_layer.items():
        if name.startswith("heads "):
            heads, kv_heads = map(int, name.split()[1:])
            found[heads, kv_heads] = min(ms, found[shape.heads, shape.kv_heads])
    return tuple(Heads(*size, ms) for size, ms in sorted(found.items()))


def _widths(ffn: int, multiple: int) -> tuple[list[int], dict[int, int], int]:
    """Widths to time, those that say which step is fast (width -> the step that it is a multiple of), and the largest
    step."""
    coarse = max((step for step in STEPS if step <= ffn // 8), default=1) if multiple == 1 else multiple
    if not ffn:
        return [], {}, coarse
    widths = {max(coarse, round(ffn * part / WIDTHS / coarse) * coarse) for part in range(1, WIDTHS)}
    base = ffn * 2 // 3 // coarse * coarse
    probes = {base + step: step for step in STEPS if step < coarse and multiple == 1}
    widths |= {base, base + coarse} if probes else set()
    return sorted(width for width in widths if width < ffn), probes, coarse


def _step(times: dict[int, float], widths: Sequence[int], probes: dict[int, int]) -> int:
    """The smallest step at which widths are as fast as at the largest."""
    base = min(probes) - min(probes.values())
    above = min(width for width in widths if width > base and width >= max(probes))
    for width, step in sorted(probes.items()):
        line = times[base] + max(0.0, times[above] - times[base]) * (width - base) / (above - base)
        if times[width] <= SLOWER * line:
            return step
    return above - base


def _timer(model: nn.Module, at: Timed, subject: Subject) -> Timer:
    """Milliseconds of what `at` names, on this model, each time that it is called."""
    generator = torch.Generator().manual_seed(0)
    bare = any(isinstance(module, Skipped) for module in model.modules())
    if at.kind == PREFILL or bare:
        tokens = at.prompt if at.kind == PREFILL else 1
        ids = torch.randint(SMALL_VOCABULARY, (at.batch, tokens), generator=generator).to(subject.device)
        return lambda: max(1, at.generated) * _forward_ms(model, ids, subject)
    # The cache grows from turn to turn: it begins so that its mean length is that of the tokens that are asked for.
    prompt = max(1, at.prompt + at.generated // 2 - (1 + REPEATS) * TOKENS // 2)
    ids = torch.randint(SMALL_VOCABULARY, (at.batch, prompt), generator=generator)
    decoding = Decoding(model, ids, subject.dtype)
    return lambda: decoding.seconds(TOKENS) * 1e3 / TOKENS * at.generated


def _forward_ms(model: nn.Module, ids: Tensor, subject: Subject) -> float:
    with evaluating(model), torch.inference_mode(), autocast(subject.device.type, subject.dtype):
        wait_for(subject.device)
        started = (clock := clock_of(subject.device))()
        model(input_ids=ids, use_cache=False)
        wait_for(subject.device)
        return (clock() - started) * 1e3


@dataclass(frozen=True)
class Took:
    """The median of some times, and its standard error, from the distance between their quartiles."""

    ms: float
    error: float = 0.0


def _take_turns(timers: dict[str, Timer], told: Told) -> dict[str, Took]:
    """Name -> milliseconds; all take turns, the first of which warms up."""
    taken: dict[str, list[float]] = {name: [] for name in timers}
    started = time.monotonic()
    for turn in range(1 + REPEATS):
        told(turn, 1 + REPEATS)
        if turn > LEAST_REPEATS and time.monotonic() - started > SECONDS:
            break
        for name, timer in timers.items():
            ms = timer()
            if turn:
                taken[name].append(ms)
    told(1 + REPEATS, 1 + REPEATS)
    found = {}
    for name, values in taken.items():
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        found[name] = Took(statistics.median(values), (third - first) / 1.35 * 1.25 / len(values) ** 0.5)
    return found
