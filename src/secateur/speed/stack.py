"""A few layers of a model with random weights, and the same cut to other sizes."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..architecture.building import built
from ..architecture.depth import without_layers
from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.families import Family
from ..architecture.units import Pool
from ..config.pruning import BLOCKS, LAYERS, WIDTH
from ..models.devices import widened
from ..models.surgery import shrink_
from ..system.errors import InputError

HEADS = 6
"""Numbers of heads that are timed, at most."""
SMALL_VOCABULARY = 64
"""Of the output layer while layers are timed: its own time would only be noise."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The model whose layers are timed."""

    config: PreTrainedConfig
    family: Family
    device: torch.device
    dtype: torch.dtype
    """What it computes in."""
    weights: torch.dtype
    """What its weights are held in."""
    trust_remote_code: bool = False


class Stack:
    """Some layers of a model, of one kind, with random weights; and the same cut to other sizes.

    Weights that a cut leaves as they are, are shared.
    """

    def __init__(self, subject: Subject, numbers: Sequence[int]) -> None:
        self.subject, self.count = subject, len(numbers)
        try:
            config = without_layers(subject.config, sorted(numbers))
            full = built(config, trust_remote_code=subject.trust_remote_code, dtype=subject.weights)
            unstack_experts(full, subject.family)
            self._full: Any = nn.Module.to(widened(full.eval(), subject.dtype), subject.device)
            self.without(LAYERS)
        except InputError as error:
            why = str(error).removeprefix("--units layers: ")
            raise InputError(
                f"its layers cannot be timed by themselves ({why}) Ask for --sparsity or --target-params."
            ) from None
        self.model = self._copied()
        head = self._full.get_output_embeddings()
        if head is not None:
            small = nn.Linear(head.weight.shape[1], SMALL_VOCABULARY, bias=False, dtype=head.weight.dtype)
            self.model.set_output_embeddings(small.to(subject.device))
        units = find_units(self.model, subject.family)
        self.shape = units.shapes[0]

    def _copied(self, model: nn.Module | None = None) -> Any:
        source = model if model is not None else self._full
        return copy.deepcopy(source, {id(parameter): parameter for parameter in source.parameters()})

    def rest(self) -> nn.Module:
        """What is no layer."""
        return self._cut(self._copied(), (LAYERS,), "none", lambda pool: 0)

    def without(self, kind: str) -> nn.Module:
        """With none of its layers."""
        model = self._copied(getattr(self, "model", None))
        return self._cut(model, (kind,), "none", lambda pool: 0)

    def with_channels(self, width: int) -> nn.Module:
        """With so many channels in each FFN."""
        return self._cut(self._copied(self.model), WIDTH, "none", lambda pool: width)

    def with_heads(self, kind: str, left: int) -> nn.Module:
        """With so many units of attention, of a kind, in each layer."""
        return self._cut(
            self._copied(self.model), ("heads",), kind, lambda pool: left if pool.kind == kind else pool.size
        )

    def blocks(self) -> dict[str, nn.Module]:
        """Without attention, and without FFN, where the layout can be without."""
        found = {}
        for name, kind in (("heads 0 0", "attention_block"), ("channels 0", "ffn_block")):
            try:
                found[name] = self._cut(
                    self._copied(self.model), (BLOCKS,), "none", lambda pool, kind=kind: int(pool.kind != kind)
                )
            except InputError:
                continue
        return found

    def head_counts(self) -> dict[tuple[int, int], tuple[str, int]]:
        """(heads, KV heads) that are timed -> kind of unit, and how many of it are left."""
        found: dict[tuple[int, int], tuple[str, int]] = {}
        for kind in ("kv_group", "query_head"):
            try:
                units = find_units(self.model, self.subject.family, kind)
            except InputError:
                continue
            pools = units.of_kind(kind)
            if not pools or pools[0].size == pools[0].sets:
                continue
            pool, counts = pools[0], range(pools[0].sets, pools[0].size, pools[0].sets)
            for left in _spread(counts, HEADS):
                shape = self.shape.without(kind, pool.size - left)
                found.setdefault((shape.heads, shape.kv_heads), (kind, left))
        return found

    def _cut(self, model: Any, kinds: Collection[str], attention: str, left: Callable[..., int]) -> nn.Module:
        units = find_units(model, self.subject.family, attention, kinds)
        keep = {pool.name: _first(pool, left(pool)) for pool in units.pools}
        shrink_(model, units, keep)
        return nn.Module.requires_grad_(model, False)


def _first(pool: Pool, left: int) -> Tensor:
    """(units,) bool: the first `left` units stay, as many of each set."""
    mask = torch.zeros(pool.sets, pool.size // pool.sets, dtype=torch.bool)
    mask[:, : -(-left // pool.sets)] = True
    return mask.flatten()


def _spread(counts: Sequence[int], most: int) -> list[int]:
    """At most so many of the counts, evenly spread, the first and the last among them."""
    if len(counts) <= most:
        return list(counts)
    return sorted({counts[round(number * (len(counts) - 1) / (most - 1))] for number in range(most)})
