"""Checkpoints whose layers differ in size: the small modelling file that comes with them.

transformers' `per_layer_config` cannot say this yet: stock Llama, Mistral and Qwen models do not read it, and
a config that overrides head counts with it cannot even be built (its validator reads the global value). So the
sizes go under a key of ours, and a subclass of the stock model reads them.
"""

import hashlib
from types import ModuleType
from typing import cast

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from .families import Family
from .layout import LayerShape, parts
from .stock import LAYERS_KEY

MODULE = "modeling_secateur"
SIZE_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")

_SOURCE = '''"""{stock} with layers of different sizes. Written by secateur; needs only torch and transformers."""

import copy

from transformers import {stock}


def resized(linear, rows=None, columns=None):
    """A linear like this one with another number of outputs (rows) or inputs (columns)."""
    place = {{"device": linear.weight.device, "dtype": linear.weight.dtype}}
    if hasattr(linear, "nf"):  # a Conv1D
        return type(linear)(rows or linear.nf, columns or linear.nx).to(**place)
    bias = linear.bias is not None
    return type(linear)(columns or linear.in_features, rows or linear.out_features, bias=bias, **place)


class Layered{stock}({stock}):
    """Builds the stock model, then gives each layer the sizes in `config.{key}`."""

    def __init__(self, config):
        super().__init__(config)
        for layer, size in zip(self.{layers}, config.{key}, strict=True):
            attention = layer.{attention}
            heads, kv_heads, ffn = (size[key] for key in {keys})
            head_dim = attention.{head_dim}
{lines}
'''
_SIZES = {"heads": "heads", "kv_heads": "kv_heads", "groups": "heads // kv_heads", "width": "heads * head_dim"}
_LENGTHS = {"q": "heads * head_dim", "o": "heads * head_dim", "k": "kv_heads * head_dim", "v": "kv_heads * head_dim"}


def modeling_source(stock_class: str, family: Family) -> str:
    """The modelling file for layers of different sizes on top of a stock class."""
    return _SOURCE.format(
        stock=stock_class,
        key=LAYERS_KEY,
        keys=SIZE_KEYS,
        layers=family.layers,
        attention=family.attention,
        head_dim=family.head_dim_at,
        lines="\n".join(f"            {line}" for line in _resizing(family)),
    )


def _resizing(family: Family) -> list[str]:
    """The statements that give a layer its sizes."""
    lines = []
    for name, size in family.attributes.items():
        if name.startswith("config."):
            lines.append("attention.config = copy.copy(attention.config)")
        lines.append(f"attention.{name} = {_SIZES[size]}")
    lengths: dict[tuple[str, int], list[str]] = {}
    for part in parts(family, LayerShape(1, 1, 1, 1), "ffn" if family.no_heads else "attention ffn"):
        lengths.setdefault((part.linear, part.dim), []).append(_LENGTHS.get(part.role, "ffn"))
    for (path, dim), terms in lengths.items():
        side = ("rows", "columns")[dim]
        lines.append(f"layer.{path} = resized(layer.{path}, {side}={' + '.join(terms)})")
    return lines


def source_hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def stock_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The language model class that transformers has for a config."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return cast(type[PreTrainedModel], auto._model_mapping[type(config)])


def layered_class(config: PreTrainedConfig, family: Family) -> type[PreTrainedModel]:
    """The class that the modelling file defines, without reading it from a checkpoint."""
    stock = stock_class_of(config).__name__
    module = ModuleType(MODULE)
    exec(compile(modeling_source(stock, family), MODULE, "exec"), module.__dict__)
    return module.__dict__[f"Layered{stock}"]


def layer_sizes(shapes: tuple[LayerShape, ...]) -> list[dict[str, int]]:
    """What goes under the config key."""
    return [dict(zip(SIZE_KEYS, shape.key(), strict=True)) for shape in shapes]
