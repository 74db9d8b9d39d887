"""Checkpoints whose layers differ in size: the small modelling file that comes with them.

transformers' `per_layer_config` cannot say this yet: stock Llama, Mistral and Qwen models do not read it, and
a config that overrides head counts with it cannot even be built (its validator reads the global value). So the
sizes go under a key of ours, and a subclass of the stock model reads them.
"""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import cast

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from ..system.errors import InputError
from .families import FAMILIES, Family, family_of
from .layout import LayerShape, parts
from .stock import FAMILY_KEY, LAYERS_KEY, head_dim_of

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


def is_layered(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> bool:
    """Whether a configuration is that of a checkpoint with layers that differ, as written here, so that
    `layered_class` reads it.

    Args:
        trust_remote_code: the folder's code may run, so a modelling file that someone changed is left to transformers.
    """
    given = getattr(config, "auto_map", None)
    code = str(given.get("AutoModelForCausalLM")) if isinstance(given, dict) else ""
    if not getattr(config, LAYERS_KEY, None) or not code.split("--")[-1].startswith(f"{MODULE}."):
        return False
    return not (trust_remote_code and _was_changed(config))


def _was_changed(config: PreTrainedConfig) -> bool:
    """Whether a layered checkpoint's modelling file is there, and another than the one that is written here."""
    path = Path(str(config._name_or_path)) / f"{MODULE}.py"
    if not path.is_file():
        return False
    source = modeling_source(stock_class_of(config).__name__, layered_family(config))
    return path.read_text(encoding="utf-8", errors="replace") != source


def layered_family(config: PreTrainedConfig) -> Family:
    """The layout that a layered checkpoint was written with.

    Raises:
        InputError: one that is not registered here.
    """
    layout = getattr(config, FAMILY_KEY, None)
    if layout is not None and layout not in FAMILIES:
        raise InputError(
            f"model {config._name_or_path!r}: it was written with the layout {layout!r}, which is not known here: "
            "register it in a script that then calls secateur.cli.main (docs/add-a-family.md)."
        )
    return family_of(str(config.model_type), layout)


def layered_shapes(config: PreTrainedConfig) -> tuple[LayerShape, ...]:
    """The shapes of a layered checkpoint's layers.

    Raises:
        InputError: the configuration does not give them; as `layered_family`.
    """
    sizes = getattr(config, LAYERS_KEY, None)
    head_dim = head_dim_of(config, layered_family(config))
    try:
        listed = [[int(size[key]) for key in SIZE_KEYS] for size in cast(list[dict[str, int]], sizes)]
        if len(listed) != config.num_hidden_layers or not all(heads > 0 < kv_heads for heads, kv_heads, _ in listed):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"model {config._name_or_path!r}: {LAYERS_KEY} in config.json must give every layer "
            f"{', '.join(SIZE_KEYS)}, and num_hidden_layers is {config.num_hidden_layers}: "
            "the checkpoint is damaged, export it again."
        ) from None
    return tuple(LayerShape(heads, kv_heads, ffn, head_dim) for heads, kv_heads, ffn in listed)
