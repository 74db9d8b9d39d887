"""The original weights of a model that is held quantised: what the result is made from.

After training they take the quantised ones' place, tensor by tensor and sliced as the model is; LoRA and masks stay.
From then on it is a model like any other, and is merged, written and verified as such.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architecture.families import FAMILIES
from ..architecture.quantised import BLOCK, bits_of, dequantised, plain_in_place_of, quantised_linears, was_conv1d
from ..architecture.units import base_linear
from ..system.errors import InputError, VerificationError
from .files import folder_of, tensor_places
from .loading import load_model
from .source import ModelSource
from .surgery import lora_factors, lora_layers
from .surgery.gains import NAME as GAIN

FURTHEST = 0.7
"""How far a quantised weight may lie from its original, over the original's norm, before it is taken for another's.
Normal weights come to 0.01 in 8 bits and 0.1 in 4, another weight or other rows to 1.4."""


def check_load_in(load_in: str | None, source: ModelSource, model_config: PretrainedConfig) -> None:
    """Refuse a base that cannot be trained on as `--load-in` says, before anything is read.

    Raises:
        InputError: bitsandbytes is not installed; as `check_quantisable`.
    """
    if load_in is not None and find_spec("bitsandbytes") is None:
        raise InputError(f"--load-in {load_in} needs bitsandbytes: pip install 'secateur[quant]'.")
    check_quantisable(load_in, source, model_config)


def check_quantisable(load_in: str | None, source: ModelSource, model_config: PretrainedConfig) -> None:
    """Refuse a model that cannot be held as `--load-in` says.

    Raises:
        InputError: the checkpoint is quantised already; a mixture of experts; a GGUF file.
    """
    if getattr(model_config, "quantization_config", None):
        raise InputError(
            f"model {source.name!r} is quantised already, so its weights are rounded: give the original checkpoint, "
            "with --load-in 8bit or 4bit where it does not fit into memory."
        )
    if load_in is None:
        return
    if source.gguf_file:
        raise InputError(
            f"--load-in {load_in}: {source.name} is a GGUF file, and the result is read from safetensors: convert it "
            "once (AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).save_pretrained(new_folder)) and give "
            "that folder."
        )
    family = FAMILIES[model_config.model_type] if model_config.model_type in FAMILIES else None  # noqa: SIM401
    if family is not None and family.experts is not None:
        raise InputError(
            f"--load-in {load_in}: {model_config.model_type} is a mixture of experts, whose experts lie in tensors of "
            "three dimensions that bitsandbytes leaves as they are: leave --load-in out."
        )


def check_blocks(empty: PreTrainedModel, load_in: str | None, device: torch.device) -> None:
    """Refuse 4-bit weights that bitsandbytes multiplies by wrongly on the CPU.

    Args:
        empty: the model without weights.
        device: that it is to train on.
    Raises:
        InputError: a linear's inputs are no multiple of a block. Its CPU kernel (0.50) then reads other blocks' scales,
            in products and when it dequantises: 0.24 of the weight's norm off with 96 inputs, where rounding is 0.09.
    """
    if load_in != "4bit" or device.type != "cpu":
        return
    head = empty.get_output_embeddings()
    for path, module in empty.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            columns = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1]
            if columns % BLOCK:
                raise InputError(
                    f"--load-in 4bit: {path} has {columns} inputs, and on the CPU bitsandbytes reads rows that are no "
                    f"multiple of {BLOCK} wrongly: use --load-in 8bit, or a GPU."
                )


def check_cuttable(modules: Mapping[str, nn.Module], *, shrink: bool, compensate: str) -> None:
    """Refuse cuts that the linears of a quantised base cannot take.

    Raises:
        InputError: slices of 4-bit weights, or compensation, which would be lost with the quantised weights.
    """
    bits = {bits_of(base_linear(module)) for module in modules.values()}
    if 4 in bits and shrink:
        raise InputError(
            "the base is in 4 bits, whose blocks run across rows and cannot be sliced: mask it until the export "
            "(shrink=False)."
        )
    if bits & {4, 8} and compensate != "none":
        raise InputError(
            f"compensate={compensate!r} rewrites the base, and what a quantised one leads to is made from the original "
            "weights: use compensate='none'."
        )


def restore_(
    model: nn.Module, stay: dict[tuple[str, int], Tensor], source: ModelSource, *, trust: bool = False
) -> None:
    """Put the original weights in the place of a quantised base's, on the CPU; LoRA stays as it is.

    What is not quantised and was moved (biases that are trained, an embedding that came with an adapter) stays, too.

    Args:
        stay: (linear, dim) -> ascending positions that `model` has now, for every linear that was sliced
            (`surgery.removals`).
        trust: run the model's own code, where it comes with some.
    Raises:
        InputError: the originals cannot be read.
        VerificationError: what is there is not what was quantised.
    """
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    frozen = {
        name: parameter
        for name, parameter in base.named_parameters()
        if not name.endswith(GAIN) and ".lora_" not in name
    }
    linears = dict(quantised_linears(base))
    with original_tensors(source, {_plain(name) for name in frozen}, trust) as read:
        for name in frozen:
            path, _, leaf = name.rpartition(".")
            if path in linears:
                continue
            value = as_trained(name, frozen[name], sliced_as(read(_plain(name)), _plain(path), stay, (0, 1)))
            setattr(base.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
        for path, linear in linears.items():
            weight = read(f"{_plain(path)}.weight")
            bias = None if linear.bias is None else read(f"{_plain(path)}.bias")
            base.set_submodule(path, _restored(_plain(path), linear, weight, bias, stay))
    base.tie_weights()
    quantizer: Any = base.hf_quantizer
    quantizer.remove_quantization_config(base)
    for flag in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
        setattr(base, flag, False)
    nn.Module.to(model, "cpu")


def with_plain_lora(model: PeftModel) -> PeftModel:
    """The same adapter in PEFT's layers for plain linears, after `restore_`; `model` is used up.

    Those for quantised linears compute the same function, and round in other places.
    """
    (adapter,) = model.active_adapters
    config = model.peft_config[adapter]
    layers = lora_layers(model)
    factors = {path: lora_factors(layer) for path, layer in layers.items()}
    plain = get_peft_model(cast(PreTrainedModel, model.unload()), config, adapter_name=adapter)
    assert isinstance(plain, PeftModel)
    for path, layer in lora_layers(plain).items():
        fresh, trained = lora_factors(layer), factors[path]
        fresh.a.data, fresh.b.data = trained.a.data, trained.b.data
        layer.scaling[adapter] = trained.scaling
    return plain.train(model.training)


def _restored(
    path: str, linear: Any, weight: Tensor, bias: Tensor | None, stay: dict[tuple[str, int], Tensor]
) -> nn.Module:
    """The unquantised module in a quantised linear's place.

    Args:
        weight, bias: as the checkpoint has them.
    Raises:
        VerificationError: the original is not what was quantised.
    """
    weight = sliced_as(weight.T if was_conv1d(linear) else weight, path, stay, (0, 1))
    bias = None if bias is None else as_trained(f"{path}.bias", linear.bias, sliced_as(bias, path, stay, (0,)))
    check_same(path, dequantised(linear).cpu(), weight)
    return plain_in_place_of(linear, weight, bias)


def check_same(path: str, held: Tensor, weight: Tensor) -> None:
    """Refuse a weight that is not the one that was quantised.

    Args:
        held: (out, in), dequantised.
        weight: (out, in) of the checkpoint.
    Raises:
        VerificationError: names the linear.
    """
    same = held.shape == weight.shape
    off = float((held - weight.float()).norm() / weight.float().norm().clamp_min(1e-30)) if same else float("inf")
    if not off <= FURTHEST:
        raise VerificationError(
            f"{path}: the weight in the checkpoint is not the one that was quantised ({off:.2f} of its norm away, "
            f"{FURTHEST} allowed): the checkpoint has changed since it was loaded."
        )


def as_trained(name: str, held: Tensor, value: Tensor) -> Tensor:
    """The checkpoint's value of a tensor that is not quantised; the model's own, where the two are not the same.

    Training moves biases (`bias="all"`), and an adapter's file may hold biases and embeddings of its own.

    Args:
        held: as the model has it, in the precision that it computes in.
        value: as the checkpoint has it, which may be wider.
    Raises:
        VerificationError: it has another shape.
    """
    held = held.detach().cpu()
    if held.shape != value.shape:
        raise VerificationError(
            f"{name} is {tuple(value.shape)} in the checkpoint and {tuple(held.shape)} in the model: the checkpoint "
            "has changed since it was loaded."
        )
    return value if torch.equal(value.to(held.dtype), held) else held.to(value.dtype)


def check_unchanged(path: str, held: Tensor, value: Tensor) -> None:
    """Refuse a frozen weight that is not the one that was trained on; the arguments are `as_trained`'s.

    Raises:
        VerificationError: names the linear.
    """
    if as_trained(path, held, value) is not value:
        raise VerificationError(
            f"{path}: the weight in the checkpoint is not the one that was trained on: the checkpoint has changed "
            "since it was loaded."
        )


def sliced_as(value: Tensor, path: str, stay: dict[tuple[str, int], Tensor], dims: tuple[int, ...] = (0, 1)) -> Tensor:
    """A linear's tensor with the positions that stay, (linear, dim) -> ascending, where there are some named."""
    for dim in dims:
        if (path, dim) in stay and dim < value.dim():
            value = value.index_select(dim, stay[path, dim].to(value.device))
    return value


@contextmanager
def original_tensors(source: ModelSource, names: Collection[str], trust: bool) -> Iterator[Callable[[str], Tensor]]:
    """A function from the names of a model's parameters to their values in its checkpoint, one read at a time.

    Where the checkpoint has other names than the model (transformers renames some as it loads), the whole of it is
    loaded on the CPU.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    places = _places(source)
    if not set(names) <= places.keys():
        state = load_model(source, trust_remote_code=trust).state_dict()
        yield state.__getitem__
        return
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = places[name]
            if path not in opened:  # one at a time: pages of an open file stay in memory
                stack.close()
                opened.clear()
                opened[path] = stack.enter_context(safe_open(path, framework="pt"))
            return cast(Tensor, opened[path].get_tensor(name))

        yield read


def _places(source: ModelSource) -> dict[str, Path]:
    """Tensor name -> its safetensors file, of a folder or of the hub's cache."""
    folder = folder_of(source)
    if folder is None:
        raise InputError(f"model {source.name!r}: its original weights cannot be read again: it is not in the cache.")
    return tensor_places(folder)


def _plain(name: str) -> str:
    """A parameter's or module's name without what PEFT has put into it."""
    return name.replace(".base_layer", "")
