"""FLOPs of a LoRA training step, from the sizes of the model's linears alone.

Multiplications and additions of matrix products; norms, activations, softmax, the loss and the optimiser are left out.
For N tokens, in sequences of T, a step takes

    frozen linear (out x in)   2·N·out·in forward, 2·N·out·in for the gradient of its input; none for its weight
    LoRA on it (rank r)        2·N·r·(in + out) forward, the same for the factors' gradients, and for their inputs'
    attention of width w       4·N·T·w forward (scores and weighted values, the full square), 8·N·T·w backward
    output head                as a frozen linear

and nothing flows back beyond the first LoRA layer: a linear whose input comes from none makes no gradient of it. Fused
attention kernels make the scores again in the backward pass, 2·N·T·w more, which are not counted.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..architecture.experts import chosen_of
from ..architecture.families import Family
from ..architecture.layout import ATTENTION_BLOCK, LAYER
from ..architecture.units import ATTENTION_KINDS, Units, base_linear, weight_of
from ..models.benchmark import linears_in_use
from ..pruning.schedule import Schedule


@dataclass(frozen=True, eq=False)
class ModelSizes:
    """What of a model's sizes FLOPs and memory depend on."""

    family: Family
    places: tuple[tuple[Family, int], ...]
    """Every layer: its stack's layout, and its number there."""
    active: int
    """Experts that a token goes through, where there are some."""
    linears: dict[str, tuple[int, int]]
    """Path of each decoder linear -> (out, in); of experts, as many as a token goes through."""
    in_use: dict[str, tuple[int, int, float]]
    """Path of every linear but the output head -> (out, in), and the share of tokens that go through it."""
    head: tuple[int, int]
    """(vocabulary, width) of the output head."""
    largest_params: int
    """Parameters of the largest part that `shard_base` gathers at once: a linear, the embedding or the head."""
    whole_params: int
    """Parameters that it leaves whole on every device: norms, tied embeddings, `Conv1D`."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimiser step, by part."""

    forward: float
    """Frozen linears of the decoder."""
    backward: float
    """Gradients of their inputs."""
    lora: float
    attention: float
    head: float
    teacher: float
    """The dense model's forward pass (`--distill`)."""
    scoring: float
    """Gradients of weights, for criteria that look at them, until the last cut."""
    recomputed: float = 0.0
    """The layers' forward pass once more (`--gradient-checkpointing`)."""
    weights: float = 0.0
    """Gradients of weights that are trained (`--train-also weights`)."""

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Workload:
    """What a step does beyond the model's sizes."""

    sequences: int
    """Per step and device."""
    seq_len: int
    targets: Collection[str]
    """Names of the linears that have LoRA, as PEFT takes them."""
    scored: Collection[str] = ()
    """Paths of the linears whose weights' gradients are made for scoring."""
    teacher: bool = False
    checkpointing: bool = False
    """Whether the layers' forward pass is made again for the backward pass."""
    weights: bool = False
    """Whether the linears' weights are trained."""
    target_len: int | None = None
    """Of an encoder-decoder: tokens of a target, where a sequence is a source."""

    def part_of(self, stack: Family, whole: Family) -> float:
        """Tokens that a stack of layers reads, over those of the sequences; cross-attention's as the decoder's."""
        decodes = bool(whole.stacks) and stack.layers != whole.stacks[0].layers
        return (self.target_len or self.seq_len) / self.seq_len if decodes else 1.0

    @property
    def tokens(self) -> int:
        return self.sequences * self.seq_len


def model_sizes(model: nn.Module, units: Units) -> ModelSizes:
    """Sizes of a base model; it may be without weights."""
    active = round(chosen_of(model.config))  # type: ignore[arg-type]
    linears, places = {}, []
    for stack in units.family.stacks or (units.family,):
        for number, layer in enumerate(model.get_submodule(stack.layers).children()):
            places.append((stack, number))
            for path in _paths(stack, stack.linears, active):
                try:
                    rows, columns = weight_of(base_linear(layer.get_submodule(path))).shape
                except AttributeError:  # a layer without experts, or without attention
                    continue
                linears[f"{stack.layers}.{number}.{path}"] = (int(rows), int(columns))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary, width = head.weight.shape
    tied = head.weight is embedding.weight
    spread = [
        sum(p.numel() for p in module.parameters(recurse=False))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not (tied and module.weight is head.weight)
    ]
    whole = sum(p.numel() for p in model.parameters()) - sum(spread)
    size = (int(vocabulary), int(width))
    modules = dict(model.named_modules())
    in_use = {path: sides for path, sides in linears_in_use(model).items() if modules[path] is not head}
    return ModelSizes(units.family, tuple(places), active, linears, in_use, size, max(spread, default=0), whole)


def forward_products(sizes: ModelSizes, units: Units, gone: Mapping[str, float], seq_len: int) -> int:
    """FLOPs of one forward pass of `seq_len` tokens, without the output head: of the linears, and of attention.

    Args:
        gone: units that are gone from each pool; where it is not known which go (global allocation) attention's own
            products are counted in full.
    """
    left = {path: [float(rows), float(columns), share] for path, (rows, columns, share) in sizes.in_use.items()}
    widths = sum(shape.attention_width for shape in units.shapes)
    for pool in (pool for pool in units.pools if gone.get(pool.name)):
        lost = gone[pool.name]
        if pool.kind == LAYER:
            for path in (path for path in left if path.startswith(f"{pool.path}.")):
                left[path][2] *= 1 - lost
        else:
            for member in (member for member in pool.members if member.linear in left):
                left[member.linear][member.dim] -= lost * member.index.shape[1]
        for shape in (units.shapes[layer] for layer in pool.layers):
            if pool.kind in (LAYER, ATTENTION_BLOCK):
                widths -= lost * shape.attention_width
            elif pool.kind in ATTENTION_KINDS:
                widths -= shape.attention_width - shape.without(pool.kind, int(lost)).attention_width
    linear = sum(rows * columns * share for rows, columns, share in left.values())
    return 2 * seq_len * round(linear) + round(4 * seq_len**2 * widths)


def step_flops(sizes: ModelSizes, units: Units, gone: Mapping[str, float], rank: float, work: Workload) -> StepFlops:
    """FLOPs of a step when some units are gone.

    Args:
        gone: pool name -> units removed (may be a fraction, on average over layers).
        rank: of LoRA.
    """
    linears = _without(sizes, units, gone)
    forward = backward = lora = attention = again = 0.0
    flowing = False  # whether gradients go back further than the linear at hand
    for family, number in sizes.places:
        part = work.part_of(family, sizes.family)
        for stage, paths in enumerate(_stages(sizes, family, number)):
            adapted = [path for path in paths if _targeted(path, work.targets)]
            for path in paths:
                rows, columns = linears[path]
                forward += part * rows * columns
                backward += part * rows * columns * flowing
            for path in adapted:
                rows, columns = linears[path]
                lora += part * rank * (2 * (rows + columns) + rows + columns * flowing)
                again += part * rank * (rows + columns)
            if stage == 0:
                _, width = linears.get(f"{family.layers}.{number}.{family.o}", (0, 0))  # a hybrid's layer
                inputs = (f"{family.layers}.{number}.{getattr(family, role)}" for role in "qkv")
                products = _attention_products(*(flowing or path in adapted for path in inputs))
                attention += part * work.seq_len * width * (2 + products)
                again += part * work.seq_len * width * 2
            flowing = flowing or bool(adapted)
    head = (work.target_len or work.seq_len) / work.seq_len * sizes.head[0] * sizes.head[1]
    dense = sum(rows * columns for rows, columns in sizes.linears.values())
    widths = sum(columns for path, (_, columns) in sizes.linears.items() if path.endswith(sizes.family.o))
    taught = dense + head + 2 * work.seq_len * widths if work.teacher else 0
    scoring = sum(rows * columns for path, (rows, columns) in linears.items() if path in work.scored)
    recomputed, trained = (forward + again) * work.checkpointing, forward * work.weights
    per_token = (forward, backward, lora, attention, head * (1 + flowing), taught, scoring, recomputed, trained)
    return StepFlops(*(2.0 * work.tokens * count for count in per_token))


def run_flops(first: StepFlops, last: StepFlops, schedule: Schedule, steps: int, *, shrink: bool) -> float:
    """FLOPs of all steps of a run, while the model goes from its first size to its last.

    Every term is linear in the units that are gone (but for a rank that falls at the same time: close to it).

    Args:
        shrink: whether a cut makes the model smaller at once; if not, it stays dense to the end.
    """
    total, gone = 0.0, 0.0
    for step in range(1, steps + 1):
        dense, small = first.total - first.scoring, last.total - last.scoring
        total += dense + (small - dense) * gone
        if step <= schedule.last_cut:
            total += first.scoring + (last.scoring - first.scoring) * gone
        if shrink and schedule.is_cut(step):
            gone = schedule.progress(step)
    return total


def _without(sizes: ModelSizes, units: Units, gone: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Path -> (out, in) after units are gone."""
    left = {path: [float(size) for size in shape] for path, shape in sizes.linears.items()}
    for pool in units.pools:
        for member in (member for member in pool.members if member.linear in left):
            left[member.linear][member.dim] -= gone.get(pool.name, 0) * member.index.shape[1]
    return {path: (rows, columns) for path, (rows, columns) in left.items()}


def _stages(sizes: ModelSizes, family: Family, number: int) -> Iterator[list[str]]:
    """Paths of a layer's linears; those that read the same thing together, in order of use."""
    beside = [stage for each in family.beside for stage in (each.inputs, (each.output,))]
    attention = (family.attention_of,) if family.attention_of else ((family.q, family.k, family.v), (family.o,))
    for stage in (*attention, family.mlp_in, (family.mlp_out,), *beside):
        paths = [f"{family.layers}.{number}.{path}" for path in _paths(family, stage, sizes.active)]
        yield [path for path in paths if path in sizes.linears]


def _paths(family: Family, paths: Iterable[str], active: int) -> list[str]:
    """Each path once; of an expert's, those of the first `active` experts."""
    experts = range(active) if family.experts else (0,)
    return list(dict.fromkeys(path.format(expert) for path in paths for expert in experts))


def _attention_products(query: bool, key: bool, value: bool) -> int:
    """Products of attention's backward pass, by which of its inputs have a gradient; the forward pass has two."""
    return query + key + value + (query or key)


def _targeted(path: str, targets: Collection[str]) -> bool:
    """Whether PEFT puts LoRA on a linear, given the names of its targets."""
    return any(path == name or path.endswith(f".{name}") for name in targets)
