"""What a refit in sequence and a search are made on: a few batches that the model's user hands over."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...system.errors import InputError

NONE_GIVEN = (
    "{asked} has nothing to go by: call pruner.calibrate(batches) before training, with some thousand "
    'tokens as the model is given them, such as [{{"input_ids": ids}}, ...].'
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches, and what the model computes in (None: in its weights' own precision)."""

    batches: list[dict[str, Tensor]]
    dtype: torch.dtype | None


def calibration_of(batches: Iterable[Mapping[str, Any]], dtype: torch.dtype | None) -> Calibration:
    """The batches as they are kept: on the CPU, without labels.

    Raises:
        InputError: there are none, or one is not what a model is given.
    """
    kept = []
    for number, batch in enumerate(batches):
        tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or not tokens.numel():
            found = type(batch).__name__ if tokens is None else f"one with input_ids {getattr(tokens, 'shape', tokens)}"
            raise InputError(
                f"calibrate(): batch {number} is a {found}: give what the model is given, such as "
                '{"input_ids": (sequences, tokens)}.'
            )
        inputs = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "labels"}
        kept.append({name: value.detach().cpu() for name, value in inputs.items()})
    if not kept:
        raise InputError(NONE_GIVEN.format(asked="calibrate()"))
    return Calibration(kept, dtype)
