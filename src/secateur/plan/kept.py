"""What autograd keeps of a forward pass for the backward pass, in bytes."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Kept:
    """Adds up the storages that autograd saves, each once, without the model's own."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._own = {tensor.untyped_storage()._cdata for tensor in state.values()}
        self._seen: dict[int, Tensor] = {}  # alive, so that no address comes twice
        self.bytes = 0
        self._inputs: list[int] = []
        self._layers: list[int] = []
        """Bytes of each checkpointable layer's input, and of what the layer keeps."""

    def watch(self, model: nn.Module) -> None:
        """Tell what the layers keep from what is kept outside of them."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inputs.append(bytes_of(args[0]))
            self._layers.append(-self.bytes)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._layers[-1] += self.bytes

        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        inner = {
            module for layer in layers for module in layer.modules() if module is not layer
        }  # Zamba's Mamba layers
        for layer in (layer for layer in layers if layer not in inner):
            layer.register_forward_pre_hook(enter)
            layer.register_forward_hook(leave)

    def repeat(self, repeats: dict[int, int]) -> None:
        """Count layers again, by number, that others are like."""
        for number, times in repeats.items():
            self.bytes += times * self._layers[number]
            self._layers += times * [self._layers[number]]
            self._inputs += times * [self._inputs[number]]

    def with_checkpointing(self) -> int:
        """Bytes that are kept when a layer's are computed again in the backward pass, while that is at one."""
        return self.bytes - sum(self._layers) + sum(self._inputs) + max(self._layers, default=0)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.bytes += storage.nbytes()
        return tensor


def bytes_of(tensor: Any) -> int:
    """What a tensor's entries take."""
    return int(tensor.numel() * tensor.element_size())
