"""A model in memory made sparse in one call."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.families import Family
from ..architecture.quantised import is_quantised
from ..config.sparsify import LEARNT, METHODS, parse_pattern
from ..system.errors import InputError
from ..system.registry import did_you_mean
from ..system.voice import speaks_python
from .layers import check_share, sparse_layers
from .walk import sparsify_layers


@speaks_python()
def sparsify_(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]] = (),
    *,
    pattern: str | float = "2:4",
    method: str = "sparsegpt",
    dtype: torch.dtype | None = None,
    family: str | Family | None = None,
) -> dict[str, Tensor]:
    """Put zeros into the linears of a model's layers, in place, layer by layer.

    SparseGPT (arXiv:2301.00774), Wanda (arXiv:2306.11695) or magnitude. What a pruned layer makes is what the next
    one is pruned on.

    Args:
        model: a plain causal language model; merge an adapter first.
        batches: what it is given, such as {"input_ids": (sequences, tokens)}, some ten thousand tokens of them;
            `magnitude` needs none.
        pattern: `2:4` leaves two of every four neighbouring inputs; 0.5 is a share that may lie anywhere.
        dtype: what it computes in, where that is not its weights' own (autocast).
        family: its layout, where its model type is not known.
    Returns:
        path of a linear -> (out, in) bool, which of its weights stay. Multiply by it after each step of training, or
        when LoRA is merged.
    Raises:
        InputError: no such pattern or method, or one that does not fit the model; no batches; a quantised model.
        NumericsError: an activation overflowed.
    """
    wanted = parse_pattern(pattern)
    known = [name for name in METHODS if name != LEARNT]
    if method not in known:
        raise InputError(f"method is {method!r}. {did_you_mean(method, known)}Choose from: {', '.join(known)}.")
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model is a {type(model).__name__}: give a plain model; merge an adapter first.")
    if is_quantised(model):
        raise InputError("the model is quantised, and its weights cannot be rewritten: give the original one.")
    layers = sparse_layers(model, wanted, family)
    check_share(model, layers, wanted, method)
    return sparsify_layers(model, layers, wanted, method, batches, dtype=dtype)
