"""What one model computes beside what another does: the merged beside the trained, the unquantised beside both."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.quantised import bits_of, quantised_linears
from ..models.benchmark import both_sides
from ..models.devices import without_autocast
from ..system.errors import VerificationError

MOST_KL = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Mean KL divergence (nats) allowed between the model as trained (LoRA apart, perhaps masks) and as merged and sliced,
before it is rounded to the checkpoint's precision. Compared wide on purpose: in bfloat16 the roundings of activations
alone came to 0.026 nats on a 30-layer model, and any bound above that would let a wrong channel through. In float32
1e-10 is usual; the bound leaves room for a model whose rotary frequencies were rounded by `model.to(bfloat16)`."""

QUANTISED_KL = {8: 0.1, 4: 1.0}
"""Bits -> mean KL divergence (nats) allowed between what was trained on a quantised base and that on its original
weights. SmolLM2-135M pruned by 30 % in 12 steps: 0.02 to 0.03 in 8 bits and 0.23 in 4, on four texts. FFN rows or value
heads of one layer in wrong places: 0.10 to 0.22 and 0.31 to 0.36; of the first layer 1.0 to 4.9, of all 5.6 to 14. So
it finds gross errors; that each tensor is sliced as the quantised one was, `models.original.check_same` sees, and that
none is lost which was moved, `models.original.as_trained`."""


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """(1, tokens, vocabulary) logits in evaluation mode, on the CPU; the model's mode is restored.

    In the precision of the weights, whatever autocast the model was trained under.
    """
    was_training = model.training
    model.eval()
    ids = ids.to(next(model.parameters()).device)
    with torch.inference_mode(), without_autocast(model):
        logits = model(**both_sides(model, ids), use_cache=False).logits
    model.train(was_training)
    return logits.cpu().clone()


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """The precision in which models are compared: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def most_kl_of(model: nn.Module) -> float | None:
    """`QUANTISED_KL` of a model; None where nothing of it is quantised."""
    bits = {bits_of(linear) for _, linear in quantised_linears(model)}
    return max((QUANTISED_KL[b] for b in bits if b), default=None)


@contextmanager
def same_after_restoring(model: nn.Module, ids: Tensor) -> Iterator[None]:
    """The original weights take a quantised base's place inside: it must still predict what was trained.

    Args:
        ids: (1, tokens) of real text.
    Raises:
        VerificationError: the divergence is more than quantisation explains (`QUANTISED_KL`).
    """
    allowed, trained = most_kl_of(model), logits_of(model, ids)
    yield
    if allowed is not None:
        compare_logits("the unquantised", logits_of(model, ids), "the trained", trained, allowed)


@contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """A model with its narrower parameters widened to `dtype`, which loses nothing, and narrowed again after."""
    narrow = [(p, p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < dtype.itemsize]
    for parameter, _ in narrow:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, before in narrow:
            parameter.data = parameter.data.to(before)


def compare(what: str, small: PreTrainedModel, origin: str, model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Mean KL divergence (nats over positions) of `small` from `model`, and the largest |Δlogit|.

    Raises:
        VerificationError: the divergence is more than rounding explains, or not a number.
    """
    return compare_logits(what, logits_of(small, ids), origin, logits_of(model, ids), MOST_KL[small.dtype])


def compare_logits(what: str, found: Tensor, origin: str, expected: Tensor, allowed: float) -> tuple[float, float]:
    """The same from (1, tokens, vocabulary) logits, with the most that the divergence may be."""
    expected, found = expected.double(), found.double()
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    difference = float((expected - found).abs().max())
    if not kl <= allowed:
        raise VerificationError(
            f"{what} model predicts {kl:.3g} nats off {origin} one (allowed: {allowed:g}; "
            f"largest logit difference {difference:.3g})."
        )
    return kl, difference
