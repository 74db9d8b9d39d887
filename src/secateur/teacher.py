"""Self-distillation: the dense model that training started from, out of the weights that are there anyway."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel
from torch import Tensor

from .errors import InputError
from .pruner import Pruner
from .surgery import lora_factors, lora_layers


class Teacher:
    """The frozen base with adapters and masks off.

    What compensation rewrites is kept as it was, and an adapter that took a part of the weight into its factors
    (PiSSA) is put back to where it started, so that the teacher is the dense model throughout.

    Args:
        model, pruner: at the start of training, before the first step.
    Raises:
        InputError: the pruner shrinks the model.
    """

    def __init__(self, model: PeftModel, pruner: Pruner) -> None:
        if pruner.masks is None:
            raise InputError("distillation needs the dense weights, which shrinking drops: use shrink=False.")
        self._model = model
        self._masks = pruner.masks
        moved = model.active_peft_config.init_lora_weights
        self._on_at_start = isinstance(moved, str) and moved.startswith(("pissa", "olora"))
        held: dict[Tensor, Tensor] = {}
        for parameter in pruner.rewritten().values():
            held[parameter] = parameter.detach().clone()
        for layer in lora_layers(model).values() if self._on_at_start else ():
            factors = lora_factors(layer)
            held |= {factor: factor.detach().clone() for factor in (factors.a, factors.b)}
        self._held = held

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The model is the teacher inside; call it before the student's forward pass of a step."""
        training = self._model.training
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._masks.off())
            if not self._on_at_start:
                stack.enter_context(self._model.disable_adapter())
            self._swap()
            self._model.eval()
            try:
                yield
            finally:
                self._model.train(training)
                self._swap()
                # Under autocast the teacher's casts of the factors would be taken for the student's.
                torch.clear_autocast_cache()

    def _swap(self) -> None:
        for parameter, other in self._held.items():
            parameter.data, other.data = other.data, parameter.data
