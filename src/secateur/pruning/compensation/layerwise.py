"""Running a decoder a layer at a time: how the model calls each of its layers is recorded, and done again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from ...system.errors import InputError

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Call:
    """How a model calls one of its layers, but for the hidden states: masks, positions, rotations."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's output for other hidden states, (batch, tokens, width) as they are."""
        return _first(layer(hidden, *self.args, **self.kwargs))


@dataclass(frozen=True, eq=False)
class Batch:
    """How each layer is called on a batch."""

    sequences: int
    tokens: int
    """Of a sequence."""
    calls: list[Call]
    counts: Tensor | None
    """(sequences · tokens,) bool, which are no padding; None: all."""


class Stop(Exception):
    """Leaves a forward pass that has done what was wanted of it."""


@contextmanager
def at_rest(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """The model in evaluation mode, without gradients, computing in `dtype` (None: in its weights' own)."""
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if dtype in HALF:
            # Without a cache: it would hold weights as they were before they are changed here, and casts made without
            # gradients, of which training's must not be.
            device = next(model.parameters()).device.type
            stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=False))
            stack.enter_context(disable_input_dtype_casting(model))
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def recorded(
    model: nn.Module, layers: list[nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[list[Tensor], list[Batch]]:
    """Each batch at the entrance of the first layer, (sequences, tokens, width), and how the model calls its layers.

    Args:
        model: the base model, without PEFT's wrapper.
        batches: what it is given, beside `labels`.
    Raises:
        InputError: it does something between its layers, or does not call each of them once.
    """
    known: dict[tuple[Any, ...], list[Call]] = {}
    entering, found = [], []
    for batch in batches:
        inputs = {name: value.to(next(model.parameters()).device) for name, value in batch.items() if name != "labels"}
        key = _key(inputs)
        hidden, calls = _record(model, layers, inputs, known.get(key))
        known[key] = calls
        mask = inputs.get("attention_mask")
        counts = mask.bool().flatten() if mask is not None and mask.dim() == 2 and not mask.all() else None
        entering.append(hidden)
        found.append(Batch(hidden.shape[0], hidden.shape[1], calls, counts))
    return entering, found


def _key(inputs: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """All that the layers are told of a batch: nothing depends on its tokens but the hidden states."""
    rest = sorted((name, value) for name, value in inputs.items() if name != "input_ids")
    shape = tuple(inputs["input_ids"].shape) if "input_ids" in inputs else ()
    return shape, *((name, tuple(value.shape), value.cpu().double().numpy().tobytes()) for name, value in rest)


def _record(
    model: nn.Module, layers: list[nn.Module], inputs: Mapping[str, Tensor], calls: list[Call] | None
) -> tuple[Tensor, list[Call]]:
    seen: list[Tensor] = []
    made: list[Call] = []
    left: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden, args = (args[0], args[1:]) if args else (rest.pop("hidden_states"), ())
        if module is not layers[len(made)] or (left and hidden is not left[-1]):
            raise InputError(NOT_IN_ROW.format(model=type(model).__name__, layer=len(made)))
        seen[:] = seen or [hidden]
        made.append(Call(args, rest))
        if calls is not None or module is layers[-1]:
            raise Stop

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        left[:] = [_first(output)]

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        model(**inputs, use_cache=False)
    except Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0], calls or made


NOT_IN_ROW = (
    "compensate='sequential': a {model} does not hand on what its layers make from one to the next (before layer "
    "{layer}), so they cannot be refitted in sequence: use compensate='lstsq'."
)


@dataclass(eq=False)
class Seen:
    """What a linear is given and makes in a forward pass."""

    whole: Tensor = field(default_factory=Tensor)
    """Its input as it comes."""
    input: Tensor = field(default_factory=Tensor)
    """The same with the columns that go at zero."""
    output: Tensor = field(default_factory=Tensor)


@contextmanager
def watched(linear: nn.Module, mask: Tensor | None = None, *, stop: bool = False) -> Iterator[Seen]:
    """See what passes through a linear.

    Args:
        mask: (columns,) what its input is multiplied by.
        stop: leave the forward pass behind it.
    """
    seen = Seen()

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.whole = args[0]
        seen.input = args[0] if mask is None else args[0] * mask.to(args[0])
        return (seen.input, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.output = output.clone()  # Falcon goes on in place
        if stop:
            raise Stop

    hooks = [linear.register_forward_pre_hook(before), linear.register_forward_hook(after)]
    try:
        yield seen
    except Stop:
        if not stop:
            raise
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced(linear: nn.Module, value: Tensor) -> Iterator[None]:
    """Whatever the linear makes, it is `value`, by entries in a row."""
    hook = linear.register_forward_hook(lambda module, args, output: value.to(output, copy=True).reshape(output.shape))
    try:
        yield
    finally:
        hook.remove()


def _first(output: Any) -> Tensor:
    """The hidden states, of a layer that may say more."""
    found: Tensor = output[0] if isinstance(output, tuple | list) else output  # a list: OpenAI GPT
    return found
