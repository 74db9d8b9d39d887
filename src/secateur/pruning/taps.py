"""Looking at the backward pass: identity functions in the graph that see a tensor and its gradient."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from math import gcd
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..architecture.depth import entering, leaving, with_states
from ..criteria.base import InputMoments, wide
from ..data.packing import IGNORED
from ..parallel.distributed import processes
from ..system.launcher import rank

MOMENT_TOKENS = 512
"""At most so many tokens of a micro-batch, of all processes together, give second moments: those of all 2,048 tokens of
a step would cost a tenth of the step."""
MOMENT_SHARE = 4
"""At most one token in so many, down to `FEW_TOKENS`, of which small inputs keep as many as there are."""
FEW_TOKENS = 64

Observe = Callable[[Tensor, Tensor], None]


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, seen: Tensor, observe: Observe) -> Tensor:
        ctx.save_for_backward(seen)
        ctx.observe = observe
        return value.detach()  # the model may go on in place, which a view made here would forbid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (seen,) = ctx.saved_tensors
        # Trainer scales the loss by the number of processes, as it expects gradients to be averaged over them.
        ctx.observe(seen, gradient / processes() if processes() > 1 else gradient)
        return gradient, None, None


def tap(value: Tensor, seen: Tensor, observe: Observe) -> Tensor:
    """`value`; in the backward pass, `observe(seen, ∂L/∂value)` is called."""
    result: Tensor = _Tap.apply(value, seen, observe)
    return result


def layer_tap(
    own: nn.Module, passes: "Passes", path: str, observe: Callable[["Pass", Tensor, Tensor], None], *, compares: bool
) -> Callable[..., Any]:
    """A forward hook, with keywords, that sees what a layer adds to the hidden states.

    Args:
        own: the layer: a copy of the model has its hooks, too.
        observe: is called with the pass, what is seen and ∂L/∂output (batch, tokens, width).
        compares: what is seen is 1 - cos(input, output) of each token, (batch, tokens), in the place of output - input.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states = leaving(output)
        if module is not own or not (torch.is_grad_enabled() and states.requires_grad):
            return None
        before, after = entering(args, kwargs).detach(), states.detach()
        seen = 1 - nn.functional.cosine_similarity(wide(before), wide(after), dim=-1) if compares else after - before
        return with_states(output, tap(states, seen, partial(observe, passes.of(path))))

    return hook


class Pass:
    """One forward pass that trains: how many sequences and tokens it has, and (batch, tokens) which of them count."""

    def __init__(self, batch: int = 1, tokens: int = 1, mask: Tensor | None = None) -> None:
        self.batch, self.tokens, self.mask = batch, tokens, mask
        self.whole, self.of_decoder = self, self
        """Of an encoder-decoder: the pass of both, and what it is in the decoder, which has tokens of its own."""
        self.counted = False
        """Whether a gradient of it has been seen."""


def by_sequence(x: Tensor, passed: Pass, rows: Tensor | None = None) -> Tensor:
    """(batch, tokens, columns), also where the model has flattened its sequences into one (OPT's FFN).

    A latent vector may come as one head's.

    Args:
        rows: of an expert, which rows of the batch it was given; each sequence's are filled up with zeros. Without,
            they count as one sequence.
    """
    if x.dim() > 2:
        return x.flatten(1, -2)
    if rows is None or passed.tokens == passed.batch:  # the second: nothing is known of the pass
        return x.unflatten(0, (passed.batch, -1)) if x.shape[0] == passed.tokens else x.unsqueeze(0)
    sequence = rows // (passed.tokens // passed.batch)
    counts = torch.bincount(sequence, minlength=passed.batch)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[sequence]
    apart = x.new_zeros(passed.batch, int(counts.max()), x.shape[1])
    apart[sequence, place] = x
    return apart


class Passes:
    """Reads what a model is called with, as a whole or a part of it: the model under PEFT's wrapper, or the decoder
    under its head, which loops with a loss of their own call.

    Gradient checkpointing with `use_reentrant` makes the graph in the backward pass, the last pass's first: which one a
    linear is in then, is what was noted when it ran without a graph.
    """

    def __init__(self, model: nn.Module) -> None:
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._model, self._decoder = model, getattr(base, "base_model", base)
        self._parts = [model, base, self._decoder]
        self._pairs = bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
        self._inside = self._trains = False
        self._now = Pass()
        self._noted: dict[str, list[Pass]] = {}

    def of(self, linear: str) -> Pass:
        """The pass that a linear runs in."""
        passed = self._pass_of(linear)
        return passed.of_decoder if "decoder." in linear else passed

    def _pass_of(self, linear: str) -> Pass:
        if not torch.is_grad_enabled():
            if self._trains:
                self._noted.setdefault(linear, []).append(self._now)
        elif self._noted.get(linear) and torch._C._current_graph_task_id() >= 0:
            return self._noted[linear].pop()
        return self._now

    def forget(self) -> None:
        """A step is over: no backward pass is to come."""
        self._noted = {}

    def watch(self) -> list[Any]:
        """From now on; what is returned ends it."""
        parts = {id(part): part for part in self._parts}.values()
        hooks = ((part, partial(self._read, _names(part))) for part in parts)
        return [part.register_forward_pre_hook(hook, with_kwargs=True) for part, hook in hooks]

    def _read(
        self, names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if all(module is not part for part in self._parts):  # a copy has its hooks, too
            return
        self._trains = torch.is_grad_enabled()
        if not self._trains:
            return
        known, self._inside = self._inside and module is not self._model, module is not self._decoder
        if known:  # from a call further out
            return
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        mask = given.get("attention_mask")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        tokens, states = given.get("input_ids"), given.get("inputs_embeds")
        if isinstance(tokens, Tensor):
            self._now = Pass(tokens.shape[0], tokens.numel(), mask)
        elif isinstance(states, Tensor):
            self._now = Pass(states.shape[0], states.shape[:-1].numel(), mask)
        else:
            self._now = Pass(mask=mask)
        if self._pairs and (mask := _decoder_mask(given)) is not None:
            self._now.of_decoder = Pass(mask.shape[0], mask.numel(), mask)
            self._now.of_decoder.whole = self._now


def _decoder_mask(given: Mapping[str, Any]) -> Tensor | None:
    """(batch, tokens) which of an encoder-decoder's decoder tokens count, as far as it is said."""
    tokens, mask, labels = (given.get(name) for name in ("decoder_input_ids", "decoder_attention_mask", "labels"))
    if isinstance(mask, Tensor):
        return mask.bool()
    if isinstance(labels, Tensor):  # the decoder's tokens are made of these, one place to the right
        return labels != IGNORED
    return torch.ones_like(tokens, dtype=torch.bool) if isinstance(tokens, Tensor) else None


def _names(module: nn.Module) -> tuple[str, ...]:
    """Of what a model takes, by position; PEFT's wrapper hands on what it gets."""
    names = signature(module.forward).parameters
    return ("input_ids", "attention_mask") if {"args", "kwargs"} >= names.keys() else tuple(names)


def some_tokens(tokens: int, seq_len: int, step: int, *, alone: bool = False) -> tuple[slice, float]:
    """Which of a micro-batch's tokens moments are taken from: evenly spaced, others at every step.

    The distance has no factor in common with `seq_len`: else it would be the same positions of every sequence, and the
    first one, the attention sink, is like no other. Several processes take together what one would take of their
    micro-batches in a row (Trainer deals batches out that way), so the mean over them of (sum / count) is the same;
    not where tokens are padding, where processes hold unequal numbers of tokens, or where the one process splits its
    batch into more micro-batches, whose distances are their own.

    Args:
        tokens: in this process's micro-batch.
        step: optimiser steps before this one.
        alone: other processes' numbers of tokens are not known (an expert's).
    Returns:
        A slice of the flattened tokens, and the number of tokens that their sum is to be divided by.
    """
    of = 1 if alone else processes()
    number = rank() if of > 1 else 0
    everyone = tokens * of
    stride = max(min(MOMENT_SHARE, -(-everyone // FEW_TOKENS)), -(-everyone // MOMENT_TOKENS))
    while gcd(stride, seq_len) > 1:
        stride += 1
    first = step % stride
    if first >= everyone:
        first = 0
    return slice((first - number * tokens) % stride, None, stride), len(range(first, everyone, stride)) / of


def moments_of(x: Tensor, passed: Pass, step: int, *, second: bool) -> InputMoments:
    """Sums over some of the tokens (batch, tokens, columns) that count.

    Args:
        step: optimiser steps before this one.
    """
    flat, mask = x.detach().flatten(0, -2), passed.mask
    alone = len(flat) != passed.tokens  # an expert has its own number of tokens
    where, count = some_tokens(len(flat), x.shape[-2], step, alone=alone)
    flat = flat[where]
    if mask is None or mask.shape != x.shape[:-1]:
        return InputMoments.of(flat, second, count)
    # As weights, since picking tokens by a mask would wait for the device.
    weights = mask.flatten()[where].to(flat)
    return InputMoments.of(flat * weights.unsqueeze(1), second, weights.sum(dtype=torch.float32))
