"""Refit in sequence: at a cut, layer by layer, o and down are fitted anew on what comes out of the layers already cut.

Two streams of hidden states go through the model: that of the model before the cut (h), and that of the cut one (h').
What a linear of the cut model is given, X, is known when its turn comes, and so is what the stream lacks behind it:
R = (h + o(h)) − (h' + o'(h')) at o, and the difference of the layers' outputs at down. Δ = R Xᵀ (X Xᵀ + λI)⁻¹ is added
to the columns that stay, so each layer also repairs what those before it have lost. Where a norm stands between the
linear and the stream, R is over the norm's gain and X over the size of what the linear makes. Where a layer does
something else, R is what the linear's own output lacks, on the same X.

The idea of refitting on inputs that are already pruned is SparseGPT's (arXiv:2301.00774, §3) and OSSCAR's
(arXiv:2403.12983); here the target is the stream, and units go whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...architecture.units import ATTENTION_KINDS, Member, Units, base_linear, sides_of, weight_of
from ...criteria.base import wide
from ...parallel.distributed import largest, processes, total
from ...parallel.sharding import assign_, gathered
from ...system.errors import InputError
from ...system.launcher import rank
from .blocks import Block, Branch, block_of
from .layerwise import Batch, Seen, at_rest, recorded, watched
from .ridge import RIDGES, Fit, Sums

PROBE = 8
"""Tokens of two sequences that show what a layer does with what its linears make."""
HELD = 4
"""One sequence in so many is not fitted to, but there to choose the ridge."""


def refit_in_sequence(
    model: nn.Module,
    units: Units,
    stay: Mapping[str, Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    ridges: Sequence[float] = RIDGES,
) -> dict[str, Fit]:
    """Change o and down of every layer, from the first that loses units on, so that those that stay take over.

    The model is as it was before the cut, and the units that go are in it after the call too: slicing or masking them
    comes next. LoRA is at work throughout, and what is changed is the base weight beside it.

    Args:
        model: a `PeftModel` or a plain causal language model.
        units: of the model as it is.
        stay: pool name -> (units,) bool, which of them stay.
        batches: what the model is given, such as {"input_ids": (sequences, tokens)}; of several processes each has its
            own, and as many.
        dtype: what the model computes in, where that is not its weights' own (autocast).
        ridges: to choose from for each linear, relative to the mean diagonal of X Xᵀ.
    Returns:
        path of a linear -> how it was changed.
    Raises:
        InputError: no batches; a model whose layers do not follow one another.
        NumericsError: an activation overflowed.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = [base.get_submodule(place.prefix) for place in units.places]
    with at_rest(model, dtype):
        batches = list(batches)
        _check_batches(batches)
        (hidden,), (small,) = recorded(base, layers, [{"input_ids": batches[0]["input_ids"][:2, :PROBE]}])
        blocks: list[Block | None] = []
        for layer, place, shape, call in zip(layers, units.places, units.shapes, small.calls, strict=True):
            if not (shape.heads and shape.ffn):  # a hybrid's, which does something else beside
                blocks.append(None)
                continue
            ends = (layer.get_submodule(path) for path in (place.family.o, place.family.mlp_out))
            blocks.append(block_of(layer, call, hidden, *ends))
        walk = _Walk(*recorded(base, layers, batches), ridges, two=any(blocks))
        for number, layer in enumerate(layers):
            walk.through(number, layer, blocks[number], dict(_gates(units, number, stay, base)))
        return walk.found


@dataclass(frozen=True, eq=False)
class _Gate:
    """An o or down whose input loses columns, or may make up for what went before it."""

    path: str
    linear: nn.Module
    columns: Tensor
    """(n,) positions along its input that stay."""
    mask: Tensor
    """(columns,) 1 at those, else 0."""

    @property
    def loses(self) -> bool:
        return len(self.columns) < len(self.mask)


def _gates(units: Units, layer: int, stay: Mapping[str, Tensor], base: nn.Module) -> Iterable[tuple[str, _Gate]]:
    """`attention` and `ffn`, of those that a layer has, and its gate."""
    for pool in units.pools:
        for gate in pool.gates if pool.layer == layer else ():
            kind = "attention" if pool.kind in ATTENTION_KINDS else "ffn"
            yield kind, _gate(gate, stay[pool.name], base.get_submodule(gate.linear))


def _gate(gate: Member, stay: Tensor, linear: nn.Module) -> _Gate:
    columns, mask = gate.entries(stay), torch.zeros(gate.size)
    mask[columns] = 1
    device = weight_of(base_linear(linear)).device
    return _Gate(gate.linear, linear, columns.to(device), mask.to(device))


def _check_batches(batches: Sequence[Mapping[str, Tensor]]) -> None:
    if not batches or (processes() > 1 and largest(len(batches)) * processes() != total(len(batches))):
        raise InputError(
            f"compensate='sequential' has {len(batches)} batches to calibrate on: give one at least, and as many in "
            "each process."
        )


class _Walk:
    """Both streams of hidden states, from layer to layer.

    Args:
        entering: the batches at the entrance of the first layer.
        two: whether any layer looks at the whole model's stream.
    """

    def __init__(self, entering: list[Tensor], batches: list[Batch], ridges: Sequence[float], *, two: bool) -> None:
        self._batches, self._ridges, self._two = batches, ridges, two
        self._whole = entering
        """The stream of the model before the cut."""
        self._cut = list(self._whole)
        self._same = True
        self.found: dict[str, Fit] = {}

    def through(self, number: int, layer: nn.Module, block: Block | None, gates: Mapping[str, _Gate]) -> None:
        """Refit the gates of a layer, and go on to the next one."""
        self._same &= not any(gate.loses for gate in gates.values())
        if self._same:
            self._whole = [batch.calls[number](layer, h) for batch, h in zip(self._batches, self._whole, strict=True)]
            self._cut = list(self._whole)
            return
        attention, ffn = gates.get("attention"), gates.get("ffn")
        self._refit_attention(number, layer, block, attention)
        self._refit_ffn(number, layer, block, attention, ffn)

    def _refit_attention(self, number: int, layer: nn.Module, block: Block | None, o: _Gate | None) -> None:
        """Refit o, and take the stream of the whole model behind the layer."""
        sums, branch = None, None if block is None else block.attention
        for place, batch in enumerate(self._batches):
            call, h, cut = batch.calls[number], self._whole[place], self._cut[place]
            if o is None:
                self._whole[place] = call(layer, h) if self._two else h
                continue
            with watched(o.linear) as before:
                self._whole[place] = call(layer, h) if self._two else h
            with watched(o.linear, o.mask, stop=True) as now:
                call(layer, cut)
            lacks = None
            if branch is not None:
                added, adds = (branch.adds(wide(seen.output).reshape(h.shape)) for seen in (before, now))
                lacks = (h - cut).to(adds) + added.to(adds) - adds
            sums = sums or self._sums(o, now.output)
            self._add(sums, place, o, now, branch, lacks)
        if o is not None and sums is not None:
            self._change_(o, sums, branch)

    def _refit_ffn(
        self, number: int, layer: nn.Module, block: Block | None, o: _Gate | None, down: _Gate | None
    ) -> None:
        """Refit down, and take the stream of the cut model behind the layer."""
        sums, branch = None, None if block is None else block.ffn
        inputs: list[Tensor] = []
        again = branch is None or branch.normed  # what a change adds to the stream is not seen without the layer
        for place, batch in enumerate(self._batches):
            out, now = self._cut_pass(layer, batch, number, place, o, down)
            if down is not None:
                sums = sums or self._sums(down, now.output)
                self._add(sums, place, down, now, branch, None if branch is None else wide(self._whole[place] - out))
                if not again:
                    inputs.append(now.input[..., down.columns])
            if down is None or not again:
                self._cut[place] = out
        if down is None or sums is None:
            return
        change = self._change_(down, sums, branch)
        for place, batch in enumerate(self._batches):
            if again or branch is None:
                self._cut[place] = self._cut_pass(layer, batch, number, place, o, down)[0]
            else:
                more = nn.functional.linear(inputs[place], change.to(inputs[place]))
                self._cut[place] = self._cut[place] + branch.adds(more.reshape(self._cut[place].shape))

    def _cut_pass(
        self, layer: nn.Module, batch: Batch, number: int, place: int, o: _Gate | None, down: _Gate | None
    ) -> tuple[Tensor, Seen]:
        """The cut layer's output on the cut stream, and what its down has seen."""
        seen = Seen()
        with ExitStack() as stack:
            if o is not None:
                stack.enter_context(watched(o.linear, o.mask))
            if down is not None:
                seen = stack.enter_context(watched(down.linear, down.mask))
            return batch.calls[number](layer, self._cut[place]), seen

    def _sums(self, gate: _Gate, output: Tensor) -> Sums:
        return Sums(sides_of(base_linear(gate.linear))[0], len(gate.columns), output)

    def _add(
        self, sums: Sums, place: int, gate: _Gate, seen: Seen, branch: Branch | None, lacks: Tensor | None
    ) -> None:
        """Add a batch's tokens that are no padding.

        Args:
            lacks: (sequences, tokens, width) what the stream lacks; None: what the linear's own output does.
        """
        batch, x = self._batches[place], seen.input[..., gate.columns].flatten(0, -2)
        if branch is None or lacks is None:
            lacks = gate.linear.forward(seen.whole) - seen.output  # its hooks (masks, gains) have done their part
        else:
            lacks = lacks / branch.gain.to(lacks)
            x = wide(x) / branch.scale(wide(seen.output).flatten(0, -2))
        first = sum(other.sequences for other in self._batches[:place])
        numbers = torch.arange(first, first + batch.sequences, device=x.device) * processes() + rank()  # of all
        held = (numbers % HELD == HELD - 1).repeat_interleave(batch.tokens)
        lacks = lacks.reshape(-1, lacks.shape[-1]).to(x.device)
        if batch.counts is not None:
            counts = batch.counts.to(x.device)
            x, lacks, held = x[counts], lacks[counts], held[counts]
        sums.add(x, lacks, held)

    def _change_(self, gate: _Gate, sums: Sums, branch: Branch | None) -> Tensor:
        """Add what fits best to the columns that stay; returns what was added, as rounded."""
        sums.share()
        change, self.found[gate.path] = sums.fit(self._ridges, gate.path, None if branch is None else branch.gain)
        weight = weight_of(base_linear(gate.linear))
        whole = gathered(weight.detach())
        old = whole[:, gate.columns]
        new = (old.to(change.dtype) + change).to(whole.dtype)
        if whole is weight or whole.data_ptr() == weight.data_ptr():
            weight.data[:, gate.columns] = new
        else:
            assign_(weight, whole.index_copy(1, gate.columns, new))
        return new - old
