"""A frozen base that bitsandbytes holds in 8 or 4 bits: all that secateur knows of its layers.

8bit (LLM.int8, arXiv:2208.07339): whole numbers from -127 to 127, and one float32 scale for each row. Any rows and
columns of such a weight mean what they meant in the whole, so cuts slice it.
4bit (NF4, QLoRA, arXiv:2305.14314): two codes in a byte, and one float32 scale for each `BLOCK` entries of the
flattened weight. Blocks run on from row to row, so what is cut out would have to be quantised anew: cuts mask instead.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from ..system.errors import InputError

bnb: Any
try:  # PEFT imports it too where it is installed
    import bitsandbytes as bnb
except ImportError:
    bnb = None

BLOCK = 64
"""Entries that share a scale in 4 bits."""
BITS = {"8bit": 8, "4bit": 4}
"""`--load-in` -> bits of an entry."""


def loading_options(load_in: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told to quantise the linears, the output embedding's apart, as it reads them.

    Args:
        load_in: of `BITS`.
        dtype: of the computation, and of what is not quantised.
    """
    how = (
        BitsAndBytesConfig(load_in_8bit=True)
        if BITS[load_in] == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    )
    return {"quantization_config": how, "device_map": {"": device}}


def settle_(model: nn.Module) -> None:
    """Make a model that was just loaded safe to evaluate and train in turns."""
    # It says at every product in 8 bits that activations are cast, which is what LLM.int8 does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for _, linear in quantised_linears(model):
        if isinstance(linear, bnb.nn.Linear4bit):
            # On CPUs with AVX512-BF16 it would repack the weight at the first evaluation, for good: with scales in
            # bfloat16, without a gradient of its input, and not at all where a row is no multiple of a block.
            linear.support_avx512bf16_for_cpu = False


def widen_(model: nn.Module) -> None:
    """Compute in float32 with a quantised model: what is not quantised becomes it, the codes stay as they are."""
    for module in model.modules():
        own: list[Tensor | None] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if bits_of(module) is not None:
            own = [module.bias]  # type: ignore[list-item]
        for tensor in own:
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.float()
        if bits_of(module) == 4:
            module.compute_dtype = torch.float32  # type: ignore[assignment]


def check_rows(model: nn.Module) -> None:
    """Refuse a 4-bit checkpoint that bitsandbytes computes wrongly with on the CPU (`models.original.check_blocks`).

    Raises:
        InputError: names the first linear whose rows are no whole blocks.
    """
    for path, linear in quantised_linears(model):
        if bits_of(linear) == 4 and linear.in_features % linear.weight.quant_state.blocksize:
            raise InputError(
                f"{path} is in 4 bits and has {linear.in_features} inputs, and on the CPU bitsandbytes reads rows that "
                f"are no multiple of {linear.weight.quant_state.blocksize} wrongly: give the original checkpoint, or "
                "use a GPU."
            )


def bits_of(linear: nn.Module) -> int | None:
    """8 or 4 for a quantised linear, None for any other module."""
    if bnb is None:
        return None
    return 8 if isinstance(linear, bnb.nn.Linear8bitLt) else 4 if isinstance(linear, bnb.nn.Linear4bit) else None


def quantised_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of each."""
    yield from ((path, module) for path, module in model.named_modules() if bits_of(module))


def is_quantised(model: nn.Module) -> bool:
    """Whether any linear of the model is."""
    return any(True for _ in quantised_linears(model))


def dequantised(linear: Any) -> Tensor:
    """(out, in) float32: what the linear multiplies by; made anew at each call."""
    if bits_of(linear) == 8:
        codes, scales = _codes_and_scales(linear)
        return codes.float() * (scales.float() / 127).unsqueeze(1)
    weight = linear.weight
    whole: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return whole.float()


def dequantised_rows(linear: Any, rows: slice) -> Tensor:
    """(rows, in) float32: some rows of what the linear multiplies by. In 4 bits rows have to be `whole_blocks`."""
    if bits_of(linear) == 8:
        codes, scales = _codes_and_scales(linear)
        return codes[rows].float() * (scales[rows].float() / 127).unsqueeze(1)
    state = linear.weight.quant_state
    count, columns = state.shape
    first, end, _ = rows.indices(count)
    scales = state.absmax[first * columns // BLOCK : end * columns // BLOCK]
    part = bnb.functional.QuantState(
        absmax=scales, shape=torch.Size((end - first, columns)),
        dtype=state.dtype, blocksize=state.blocksize, quant_type=state.quant_type, code=state.code,
    )  # fmt: skip
    codes = linear.weight.data.reshape(-1)[first * columns // 2 : end * columns // 2].reshape(-1, 1)
    some: Tensor = bnb.functional.dequantize_4bit(codes, part)
    return some.float()


def whole_blocks(linear: Any) -> bool:
    """Whether each row of a 4-bit weight has scales of its own, which are not quantised themselves."""
    state = linear.weight.quant_state
    return state.blocksize == BLOCK and state.shape[1] % BLOCK == 0 and not state.nested


class DequantisedRows:
    """A quantised linear's weight, of which `rows[first:end]` widens no others where its layout allows that."""

    def __init__(self, linear: Any) -> None:
        self._linear = linear
        self._whole = dequantised(linear) if bits_of(linear) == 4 and not whole_blocks(linear) else None
        self.shape = torch.Size((linear.out_features, linear.in_features))
        self.dtype = torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        return dequantised_rows(self._linear, rows) if self._whole is None else self._whole[rows]


def slice_(linear: Any, dim: int, index: Tensor) -> None:
    """Keep rows (`dim` 0) or columns (1) of an 8-bit linear's weight, with the scales of its rows.

    Args:
        index: ascending positions that stay.
    """
    assert bits_of(linear) == 8, "4-bit weights are masked, not sliced"
    codes, scales = _codes_and_scales(linear)
    index = index.to(codes.device)
    codes = codes.index_select(dim, index)
    scales = scales.index_select(0, index) if dim == 0 else scales.clone()
    linear.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    linear.state.reset_grads()  # from its next forward pass on it works with the new ones


def _codes_and_scales(linear: Any) -> tuple[Tensor, Tensor]:
    """(out, in) int8 and (out,) float32; the first forward pass moves them from the weight to `state`."""
    holder = linear.weight if linear.weight.SCB is not None else linear.state
    return holder.CB, holder.SCB


def entries(parameter: Tensor) -> int:
    """How many entries a parameter stands for; a 4-bit one is packed."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def quantised_bytes(load_in: str, rows: int, columns: int) -> int:
    """Bytes of a weight (rows, columns) with its scales."""
    if BITS[load_in] == 8:
        return rows * columns + 4 * rows
    size = rows * columns
    return -(-size // 2) + 4 * -(-size // BLOCK)


def was_conv1d(linear: Any) -> bool:
    """Whether a quantised linear was made from a `Conv1D`, whose weight a checkpoint holds as (in, out)."""
    return issubclass(getattr(linear, "source_cls", nn.Linear), Conv1D)


def plain_in_place_of(linear: Any, weight: Tensor, bias: Tensor | None) -> nn.Linear | Conv1D:
    """A module of the class that `linear` was made from.

    Args:
        weight: (out, in), not quantised.
        bias: (out,)
    """
    rows, columns = weight.shape
    with torch.device("meta"):
        plain: nn.Linear | Conv1D = (
            Conv1D(rows, columns) if was_conv1d(linear) else nn.Linear(columns, rows, bias=bias is not None)
        )
    stored = weight.T if was_conv1d(linear) else weight
    plain.weight = nn.Parameter(stored.contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain.train(linear.training)
