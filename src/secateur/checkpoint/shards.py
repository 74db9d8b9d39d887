"""The small model's tensors, made from the checkpoint that was fine-tuned: one at a time, nothing of the base held."""

from collections.abc import Iterable, Iterator

from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..architecture.depth import kept_layers
from ..architecture.quantised import bits_of, dequantised, was_conv1d
from ..architecture.units import Units, folded
from ..models.original import as_trained, check_same, check_unchanged, original_tensors, sliced_as
from ..models.source import ModelSource
from ..models.surgery import is_embedding, lora_factors, lora_layers, merged, plain, removals
from ..models.surgery.naming import original_name
from ..parallel.sharding import is_sharded

Sides = dict[tuple[str, int], Tensor]
"""(linear, dim) -> ascending positions that stay."""


def merged_from_shards(
    names: Iterable[str],
    model: nn.Module,
    units: Units,
    keep: dict[str, Tensor],
    live: Sides,
    source: ModelSource,
    *,
    trust: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """As `models.surgery.merged_and_sliced`, to the bit, with the frozen weights read from their safetensors files.

    Args:
        names: the tensors wanted.
        model: has the LoRA factors; of its base nothing is read but what the checkpoint's weights are compared with,
            and what was moved beside them (biases that are trained, an embedding that came with an adapter).
        units, keep: as the model is now, and what stays of it.
        live: what the model has left of `source` where it was sliced while it trained.
        trust: run the model's own code, where it comes with some.
    Raises:
        InputError: the checkpoint cannot be read.
        VerificationError: its weights are not those that were trained on.
    """
    names = list(names)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers, stay, modules = (
        lora_layers(base),
        removals(units, keep),
        {plain(path): module for path, module in base.named_modules()},
    )
    kept = kept_layers(units.shapes_after(keep))
    formerly = {name: original_name(name, units, kept) for name in names}
    with original_tensors(source, list(formerly.values()), trust) as read:
        for small_name, name in formerly.items():
            path, _, leaf = name.rpartition(".")
            linear = layers[path].get_base_layer() if path in layers else modules[path]
            turned = leaf == "weight" and (isinstance(linear, Conv1D) or was_conv1d(linear))
            turned |= path in layers and is_embedding(layers[path])
            value = read(name)
            value = sliced_as(value.T if turned else value, path, live)
            held = getattr(linear, leaf, None)
            if leaf == "weight" and bits_of(linear):
                check_same(path, dequantised(linear).cpu(), value)
            elif held is not None and not is_sharded(linear):
                held = held.T if turned else held
                if path in layers and leaf == "weight":
                    check_unchanged(path, held, value)
                else:
                    value = as_trained(name, held, value)
            if path in layers and leaf == "weight":
                value = merged(value, lora_factors(layers[path]))
            value = sliced_as(folded(modules[path], leaf, value), path, stay)
            yield small_name, value.T if turned else value
