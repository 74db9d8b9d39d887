"""Self-distillation: the dense model that training started from, out of the weights that are there anyway."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...models.surgery import lora_factors, lora_layers
from ...pruning.pruner import Pruner
from ...system.errors import InputError


class Teacher:
    """The frozen base with masks off and adapters as they were at the start.

    What compensation rewrites is kept as it was, and an adapter that did something then (PiSSA's, which took a part of
    the weight into its factors, or one that the user gave) is put back to it, whatever rank it has by now; others are
    off. So the teacher is the dense model that training started from, throughout.

    Args:
        model, pruner: at the start of training, before the first step.
        changed: name -> parameter of the base that training itself changes.
    Raises:
        InputError: the pruner shrinks the model.
    """

    def __init__(
        self, model: PeftModel, pruner: Pruner, changed: Mapping[str, nn.Parameter] = MappingProxyType({})
    ) -> None:
        if pruner.masks is None:
            raise InputError("distillation needs the dense weights, which shrinking drops: use shrink=False.")
        self._model = model
        self._masks, self._learned = pruner.masks, pruner.scorer.masks
        rewritten = {id(p): p for p in [*pruner.rewritten().values(), *changed.values()]}.values()
        self._rewritten = [(p, p.detach().clone()) for p in rewritten]
        factors = {path: lora_factors(layer) for path, layer in lora_layers(model).items()}
        self._on_at_start = any(bool(each.b.any()) for each in factors.values())
        self._factors = {
            path: (each.a.detach().clone(), each.b.detach().clone())
            for path, each in factors.items()
            if self._on_at_start
        }

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The model is the teacher inside; call it before the student's forward pass of a step."""
        training = self._model.training
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._masks.off())
            if self._learned is not None:
                stack.enter_context(self._learned.off())
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
        layers = lora_layers(self._model) if self._factors else {}
        pairs: list[tuple[Tensor, Tensor]] = list(self._rewritten)
        for path, (a, b) in self._factors.items():
            now = lora_factors(layers[path])  # rank pruning has put others in place
            pairs += [(now.a, a), (now.b, b)]
        for parameter, other in pairs:
            parameter.data, other.data = other.data, parameter.data
