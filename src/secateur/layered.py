"""Checkpoints whose layers differ in size: the small modelling file that comes with them.

transformers' `per_layer_config` cannot say this yet: stock Llama, Mistral and Qwen models do not read it, and
a config that overrides head counts with it cannot even be built (its validator reads the global value). So the
sizes go under a key of ours, and a subclass of the stock model reads them.
"""

import hashlib
from types import ModuleType
from typing import cast

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .families import Family
from .stock import LAYERS_KEY
from .units import LayerShape

MODULE = "modeling_secateur"
SIZE_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")

_SOURCE = '''"""{stock} with layers of different sizes. Written by secateur; needs only torch and transformers."""

from torch import nn
from transformers import {stock}


def resized(linear, rows=None, columns=None):
    """A linear like this one with another number of outputs (rows) or inputs (columns)."""
    return nn.Linear(
        columns or linear.in_features,
        rows or linear.out_features,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )


class Layered{stock}({stock}):
    """Builds the stock model, then gives each layer the sizes in `config.{key}`."""

    def __init__(self, config):
        super().__init__(config)
        for layer, size in zip(self.{layers}, config.{key}, strict=True):
            attention, mlp = layer.{attention}, layer.mlp
            heads, kv_heads = size["num_attention_heads"], size["num_key_value_heads"]
            attention.{repeats} = heads // kv_heads
            attention.q_proj = resized(attention.q_proj, rows=heads * attention.head_dim)
            attention.k_proj = resized(attention.k_proj, rows=kv_heads * attention.head_dim)
            attention.v_proj = resized(attention.v_proj, rows=kv_heads * attention.head_dim)
            attention.o_proj = resized(attention.o_proj, columns=heads * attention.head_dim)
            mlp.gate_proj = resized(mlp.gate_proj, rows=size["intermediate_size"])
            mlp.up_proj = resized(mlp.up_proj, rows=size["intermediate_size"])
            mlp.down_proj = resized(mlp.down_proj, columns=size["intermediate_size"])
'''


def modeling_source(stock_class: str, family: Family) -> str:
    """The modelling file for layers of different sizes on top of a stock class."""
    return _SOURCE.format(
        stock=stock_class, key=LAYERS_KEY, layers=family.layers, attention=family.attention, repeats=family.repeats
    )


def source_hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def stock_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The causal language model class that transformers has for a config."""
    return cast(type[PreTrainedModel], AutoModelForCausalLM._model_mapping[type(config)])


def layered_class(config: PreTrainedConfig, family: Family) -> type[PreTrainedModel]:
    """The class that the modelling file defines, without reading it from a checkpoint."""
    stock = stock_class_of(config).__name__
    module = ModuleType(MODULE)
    exec(compile(modeling_source(stock, family), MODULE, "exec"), module.__dict__)
    return module.__dict__[f"Layered{stock}"]


def layer_sizes(shapes: tuple[LayerShape, ...]) -> list[dict[str, int]]:
    """What goes under the config key."""
    return [dict(zip(SIZE_KEYS, shape.key(), strict=True)) for shape in shapes]
