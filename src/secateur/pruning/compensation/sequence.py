"""Refit in sequence: at a cut, layer by layer, o and down are fitted anew on what comes out of the layers already cut.

Two streams of hidden states go through the model: that of the model before the cut (h), and that of the cut one (h').
What a linear of the cut model is given, X, is known when its turn comes, and so is what the stream lacks behind it:
R = (h + o(h)) − (h' + o'(h')) at o, and the difference of the layers' outputs at down. Δ = R Xᵀ (X Xᵀ + λI)⁻¹ is added
to the columns that stay, so each layer also repairs what those before it have lost. Where a norm stands between the
linear and the stream, R is over the norm's gain and X over the size of what the linear makes. Where a layer does
something else, R is what the linear's own output lacks, on the same X.

Where layers or blocks go whole, R of the last linear before the gap reaches to the gap's end: so it takes the
least-squares map that LLM-Streamline puts in the place of layers (arXiv:2403.19135, §3.2) into its own weight.

The idea of refitting on inputs that are already pruned is SparseGPT's (arXiv:2301.00774, §3) and OSSCAR's
(arXiv:2403.12983); here the target is the stream, and units go whole.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...architecture.units import Units, base_linear, sides_of, weight_of
from ...criteria.base import wide
from ...parallel.distributed import largest, processes, total
from ...parallel.sharding import assign_, gathered
from ...system.errors import InputError
from ...system.launcher import rank
from .blocks import Branch
from .layerwise import Batch, Seen, at_rest, recorded, watched
from .ridge import RIDGES, Fit, Sums
from .steps import Gate, Step, blocks_of_all, gates_of

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
        blocks = blocks_of_all(base, units, batches[0])
        steps = [
            Step(number, layer, blocks[number], *gates_of(units, number, stay, base))
            for number, layer in enumerate(layers)
        ]
        walk = _Walk(steps, *recorded(base, layers, batches), ridges, two=any(blocks))
        for step in steps:
            walk.through(step)
        return walk.found


def _check_batches(batches: Sequence[Mapping[str, Tensor]]) -> None:
    if not batches or (processes() > 1 and largest(len(batches)) * processes() != total(len(batches))):
        raise InputError(
            f"compensate='sequential' has {len(batches)} batches to calibrate on: give one at least, and as many in "
            "each process."
        )


class _Walk:
    """Both streams of hidden states, from layer to layer.

    Args:
        steps: the layers.
        entering: the batches at the entrance of the first layer.
        two: whether any layer looks at the whole model's stream.
    """

    def __init__(
        self, steps: list[Step], entering: list[Tensor], batches: list[Batch], ridges: Sequence[float], *, two: bool
    ) -> None:
        self._steps, self._batches, self._ridges, self._two = steps, batches, ridges, two
        self._whole = entering
        """The stream of the model before the cut; behind a layer, as it is behind the gap that follows."""
        self._ahead = 0
        """Number of the layer that it comes to next."""
        self._cut = list(self._whole)
        self._same = True
        self.found: dict[str, Fit] = {}

    def through(self, step: Step) -> None:
        """Refit the gates of a layer, and go on to the next one."""
        gap = step.gone or any(following.leaves_nothing for following in self._steps[step.number + 1 :][:1])
        self._same &= not (gap or any(gate.loses for gate in step.gates))
        if self._same:
            calls = (batch.calls[step.number] for batch in self._batches)
            self._whole = [call(step.layer, h) for call, h in zip(calls, self._whole, strict=True)]
            self._cut, self._ahead = list(self._whole), step.number + 1
            return
        behind = itertools.takewhile(lambda each: each.leaves_nothing, self._steps[step.number + 1 :])
        passed = [each for each in (step, *behind) if each.number >= self._ahead and self._two]
        self._refit_attention(step, passed)
        self._ahead = max([self._ahead, *(each.number + 1 for each in passed)])
        if not step.gone:
            self._refit_ffn(step)

    def _through_whole(self, place: int, step: Step, passed: Sequence[Step]) -> Seen:
        """Take a batch of the whole model's stream through layers; what the o of `step`'s has seen."""
        with ExitStack() as stack:
            seen = Seen() if step.attention is None else stack.enter_context(watched(step.attention.linear))
            for each in passed:
                self._whole[place] = self._batches[place].calls[each.number](each.layer, self._whole[place])
        return seen

    def _refit_attention(self, step: Step, passed: Sequence[Step]) -> None:
        """Refit o. What it makes is to come to the whole model's stream as it is before what stays next.

        Args:
            passed: layers that the whole model's stream goes through first: this one, and the gap that follows.
        """
        o, down, branch = step.attention, step.ffn, None if step.block is None else step.block.attention
        sums = None
        for place, batch in enumerate(self._batches):
            h, cut = self._whole[place], self._cut[place]
            before = self._through_whole(place, step, passed)
            if o is None or not o.stays:
                continue
            with watched(o.linear, o.mask, stop=True) as now:
                batch.calls[step.number](step.layer, cut)
            lacks = None
            if branch is not None:
                adds = branch.adds(wide(now.output).reshape(h.shape))
                if down is not None and down.stays:
                    lacks = (h - cut).to(adds) + branch.adds(wide(before.output).reshape(h.shape)).to(adds) - adds
                else:
                    lacks = (self._whole[place] - cut).to(adds) - adds
            sums = sums or self._sums(o, now.output)
            self._add(sums, place, o, now, branch, lacks)
        if o is not None and sums is not None:
            self._change_(o, sums, branch)

    def _refit_ffn(self, step: Step) -> None:
        """Refit down, and take the stream of the cut model behind the layer."""
        number, layer, o, down = step.number, step.layer, step.attention, step.ffn
        sums, branch = None, None if step.block is None else step.block.ffn
        inputs: list[Tensor] = []
        again = branch is None or branch.normed  # what a change adds to the stream is not seen without the layer
        for place, batch in enumerate(self._batches):
            out, now = self._cut_pass(layer, batch, number, place, o, down)
            if down is not None and down.stays:
                sums = sums or self._sums(down, now.output)
                self._add(sums, place, down, now, branch, None if branch is None else wide(self._whole[place] - out))
                if not again:
                    inputs.append(now.input[..., down.columns])
            if sums is None or not again:
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
        self, layer: nn.Module, batch: Batch, number: int, place: int, o: Gate | None, down: Gate | None
    ) -> tuple[Tensor, Seen]:
        """The cut layer's output on the cut stream, and what its down has seen."""
        seen = Seen()
        with ExitStack() as stack:
            if o is not None:
                stack.enter_context(watched(o.linear, o.mask))
            if down is not None:
                seen = stack.enter_context(watched(down.linear, down.mask))
            return batch.calls[number](layer, self._cut[place]), seen

    def _sums(self, gate: Gate, output: Tensor) -> Sums:
        return Sums(sides_of(base_linear(gate.linear))[0], len(gate.columns), output)

    def _add(self, sums: Sums, place: int, gate: Gate, seen: Seen, branch: Branch | None, lacks: Tensor | None) -> None:
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

    def _change_(self, gate: Gate, sums: Sums, branch: Branch | None) -> Tensor:
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
