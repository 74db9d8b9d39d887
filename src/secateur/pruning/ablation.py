"""The loss of a model without one of its layers, of each by itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture.depth import entering, with_states
from ..architecture.units import Pool
from ..parallel.distributed import summed
from .compensation.layerwise import at_rest
from .model import PrunedModel

POSITIONS = 256
"""Positions whose logits are widened to float32 at once (256 x 49,152: 50 MB)."""


def loss_without(pruned: PrunedModel) -> dict[str, Tensor]:
    """Pool name -> (1,) by how much the loss on the calibration batches is higher without this layer, in nats a token.

    Of several processes all have the same.
    """
    assert pruned.calibration is not None, "check_ready has asked for it"
    batches, dtype = pruned.calibration.batches, pruned.calibration.dtype
    with at_rest(pruned.model, dtype):
        whole = _loss(pruned.model, batches)
        found = {}
        for pool in pruned.living:
            with _without(pruned, pool):
                found[pool.name] = torch.tensor([_loss(pruned.model, batches) - whole], dtype=torch.float64)
    return found


@contextmanager
def _without(pruned: PrunedModel, pool: Pool) -> Iterator[None]:
    """What comes out of the layer is what came in; what comes into a block's last linear is zero."""

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return with_states(output, entering(args, kwargs))

    def clear(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.zeros_like(args[0]), *args[1:])

    handles: list[Any] = [pruned.modules[gate.linear].register_forward_pre_hook(clear) for gate in pool.gates]
    if pool.path:
        handles.append(pruned.layers[pool.path].register_forward_hook(skip, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Of the next token, a mean over all tokens of all processes that are no padding."""
    device, total, tokens = next(model.parameters()).device, 0.0, 0
    for batch in batches:
        logits = model(**{name: value.to(device) for name, value in batch.items()}, use_cache=False).logits[:, :-1]
        targets = _targets(batch).to(device).flatten()
        for rows, wanted in zip(logits.flatten(0, 1).split(POSITIONS), targets.split(POSITIONS), strict=True):
            wide = rows.double() if rows.dtype == torch.float64 else rows.float()
            total += float(nn.functional.cross_entropy(wide, wanted, reduction="sum"))
        tokens += int((targets >= 0).sum())
    total, count = summed([total, float(tokens)])
    return total / max(1.0, count)


def _targets(batch: Mapping[str, Tensor]) -> Tensor:
    """(sequences, tokens - 1) of what follows; -100 where that is padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return ids[:, 1:]
    return ids[:, 1:].masked_fill(~mask[:, 1:].bool(), -100)
