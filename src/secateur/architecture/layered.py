"""Checkpoints whose layers differ in size: the small modelling file that comes with them.

transformers' `per_layer_config` cannot say this yet: stock Llama, Mistral and Qwen models do not read it, and
a config that overrides head counts with it cannot even be built (its validator reads the global value). So the
sizes go under a key of ours, and a subclass of the stock model reads them.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

from transformers import PreTrainedConfig, PreTrainedModel

from ..system.errors import InputError
from .depth import ABSENT_SOURCE
from .families import FAMILIES, Family, family_of
from .layout import LayerShape, in_code, parts
from .pools import BY_HEAD_SOURCE
from .stock import (
    DECILM,
    FAMILY_KEY,
    LAYERS_KEY,
    body_class_of,
    head_dim_of,
    is_whole,
    latent_of,
    stock_class_of,
    unused_norms,
)

MODULE = "modeling_secateur"
SIZE_KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")

_SOURCE = '''"""{stock} with layers of different sizes. Written by secateur; needs only torch and transformers."""

import copy

from transformers import {body}, {stock}
{absent}

def resized(linear, rows=None, columns=None):
    """A linear like this one with another number of outputs (rows) or inputs (columns)."""
    place = {{"device": linear.weight.device, "dtype": linear.weight.dtype}}
    if hasattr(linear, "nf"):  # a Conv1D
        return type(linear)(rows or linear.nf, columns or linear.nx).to(**place)
    bias = linear.bias is not None
    return type(linear)(columns or linear.in_features, rows or linear.out_features, bias=bias, **place)

{by_head}
def resize(layers, config):
    """Give each layer of a stock model the sizes in `config.{key}`."""
    for layer, size in zip(layers, config.{key}, strict=True):
{lines}


class Layered{body}({body}):
    """The model without its head, which engines build that bring a head of their own (vLLM)."""

    def __init__(self, config):
        super().__init__(config)
        resize(self.{body_layers}, config){unused_body}


class Layered{stock}({stock}):
    """Builds the stock model, then gives each layer its sizes."""

    def __init__(self, config):
        super().__init__(config)
        resize(self.{layers}, config){unused}
'''
_DECILM_SOURCE = '''

class Block(dict):
    """What a layer has, by key and by attribute."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class DeciLMConfig({config}):
    """The stock configuration, and each layer's block as NVIDIA's DeciLM has it."""

    model_type = "{model_type}"

    def __init__(self, block_configs=(), **values):
        rope = dict(values.get("rope_parameters") or {{}})
        rope.pop("rope_theta", None)
        if rope.get("rope_type", "default") != "default":
            values.setdefault("rope_scaling", rope)  # what transformers 4 knows it by
        super().__init__(**values)
        self.block_configs = [Block({{part: Block(of) for part, of in block.items()}}) for block in block_configs]


Layered{body}.config_class = Layered{model}.config_class = DeciLMConfig
'''
_ABSENT = f"from typing import Any\n\nfrom torch import Tensor, nn\nfrom transformers import Cache\n\n\n{ABSENT_SOURCE}"
_SIZES = {"heads": "heads", "kv_heads": "kv_heads", "groups": "heads // kv_heads", "width": "heads * head_dim"}
_LENGTHS = {"q": "heads * head_dim", "o": "heads * head_dim", "k": "kv_heads * head_dim", "v": "kv_heads * head_dim"}


def modeling_source(config: PreTrainedConfig, family: Family) -> str:
    """The modelling file for layers of different sizes on top of a config's stock class."""
    stock, whole = stock_class_of(config), is_whole(config)
    by_head = BY_HEAD_SOURCE if family.by_head and not family.no_heads else ""
    lines = _of_hybrid(family) if family.recurrent else _of_layer(family, whole)
    body = family.layers.removeprefix(f"{stock.base_model_prefix}.")
    ignored = "\n        self._keys_to_ignore_on_load_missing = {}" if unused_norms(config, family) else ""
    return _SOURCE.format(
        absent=_ABSENT if not whole else "from torch import nn\n" if by_head else "",
        by_head=by_head,
        unused=ignored.format(unused_norms(config, family)),
        unused_body=ignored.format(unused_norms(config, family, body)),
        stock=stock.__name__,
        body=body_class_of(config).__name__,
        body_layers=body,
        key=LAYERS_KEY,
        layers=family.layers,
        lines="\n".join(f"        {line}" for line in lines),
    )


def decilm_file(config: PreTrainedConfig, source: str) -> str:
    """A modelling file that has the configuration's class, too, as DeciLM's form needs it.

    Args:
        source: of `modeling_source`.
    """
    own, body, stock = (kind.__name__ for kind in (type(config), body_class_of(config), stock_class_of(config)))
    imported = f"from transformers import {body}, {stock}"
    more = imported.replace("import ", f"import {own}, ")
    classes = _DECILM_SOURCE.format(model_type=DECILM, config=own, body=body, model=stock)
    return source.replace(imported, more) + classes


def _of_layer(family: Family, whole: bool) -> list[str]:
    """The statements that give a layer its sizes, where every layer has attention and an FFN (`whole`) or not."""
    return [
        f"attention = layer.{family.attention}",
        f"heads, kv_heads, ffn = (size[key] for key in {SIZE_KEYS})",
        _head_dim(family),
        *(_resizing(family) if whole else _resizing_what_is_there(family)),
    ]


def _of_hybrid(family: Family) -> list[str]:
    """The same where a layer may lack attention or an FFN from the start, and its sizes then the keys."""
    known = [f"attention = layer.{family.attention}", _head_dim(family)]
    heads = ["if heads:", *(f"    {line}" for line in [*known, *_resizing(family, "attention")])]
    return [
        f"heads, kv_heads, ffn = (size.get(key, 0) for key in {SIZE_KEYS})",
        *(heads if family.no_heads is None else ()),
        "if ffn:",
        *(f"    {line}" for line in _resizing(family, "ffn")),
    ]


def _head_dim(family: Family) -> str:
    return "head_dim = " + " // ".join(f"attention.{name}" for name in family.head_dim_at.split(" // "))


def _resizing_what_is_there(family: Family) -> list[str]:
    """The same, where some layers have no attention or no FFN: what stands in their place has no weights."""
    attention, last = family.attention, family.o.removeprefix(f"{family.attention}.")
    none = [f"    {in_code(path)} = NoLinear({in_code(path)}, 0)" for path in dict.fromkeys(family.mlp_in)]
    return [
        "if heads:",
        *(f"    {line}" for line in _resizing(family, "attention")),
        "else:",
        f'    layer.{attention} = NoAttention(attention, "{last}")',
        "if ffn:",
        *(f"    {line}" for line in _resizing(family, "ffn")),
        "else:",
        *none,
        f"    {in_code(family.mlp_out)} = NoLinear({in_code(family.mlp_out)})",
    ]


def _resizing(family: Family, roles: str = "attention ffn") -> list[str]:
    """The statements that give a layer its sizes."""
    lines = []
    for name, size in family.attributes.items() if "attention" in roles else ():
        if name.startswith("config."):
            lines.append("attention.config = copy.copy(attention.config)")
        lines.append(f"attention.{name} = {_SIZES[size]}")
    for path in family.by_head if "attention" in roles and not family.no_heads else ():
        lines.append(f"{in_code(path)} = of_heads({in_code(path)}, heads, config.{family.heads})")
    lengths: dict[tuple[str, int], list[str]] = {}
    known = _LENGTHS | _latent_lengths(family)
    for part in parts(family, LayerShape(1, 1, 1, 1), "ffn" if family.no_heads else roles):
        lengths.setdefault((part.linear, part.dim), []).append(known.get(part.role, "ffn"))
    if family.query_rows > 1 and (family.q, 0) in lengths:
        lengths[family.q, 0] = [f"{family.query_rows} * heads * head_dim"]
    for (path, dim), terms in lengths.items():
        side = ("rows", "columns")[dim]
        lines.append(f"{in_code(path)} = resized({in_code(path)}, {side}={' + '.join(terms)})")
    return lines


def _latent_lengths(family: Family) -> dict[str, str]:
    """What of `_LENGTHS` is otherwise with latent attention."""
    if family.latent is None:
        return {}
    nope, value = (f"attention.{name}" for name in family.latent)
    return {"o": f"heads * {value}", "k": f"kv_heads * {nope}", "v": f"kv_heads * {value}"}


def source_hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def layered_class(config: PreTrainedConfig, family: Family) -> type[PreTrainedModel]:
    """The class that the modelling file defines, without reading it from a checkpoint."""
    module = ModuleType(MODULE)
    exec(compile(modeling_source(config, family), MODULE, "exec"), module.__dict__)
    return module.__dict__[f"Layered{stock_class_of(config).__name__}"]


def code_map(config: PreTrainedConfig) -> dict[str, str]:
    """`auto_map` of a layered checkpoint: where transformers, and engines with heads of their own, find its classes."""
    classes = {"AutoModel": body_class_of(config), "AutoModelForCausalLM": stock_class_of(config)}
    return {auto: f"{MODULE}.Layered{stock.__name__}" for auto, stock in classes.items()}


def layer_sizes(shapes: tuple[LayerShape, ...], family: Family) -> list[dict[str, int]]:
    """What goes under the config key; a hybrid's layer has no key for what it never had."""
    sizes = [dict(zip(SIZE_KEYS, shape.key(), strict=True)) for shape in shapes]
    return [{key: size for key, size in each.items() if size} for each in sizes] if family.recurrent else sizes


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
    source = modeling_source(config, layered_family(config))
    return path.read_text(encoding="utf-8", errors="replace") not in (source, decilm_file(config, source))


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
    family = family_of(str(config.model_type), layout)
    if family.otherwise is not None and family.otherwise_without and getattr(config, family.otherwise_without) is None:
        return family.otherwise
    return family


def layered_shapes(config: PreTrainedConfig) -> tuple[LayerShape, ...]:
    """The shapes of a layered checkpoint's layers.

    Raises:
        InputError: the configuration does not give them; as `layered_family`.
    """
    sizes = getattr(config, LAYERS_KEY, None)
    family = layered_family(config)
    latent = latent_of(config, family)
    try:
        given = cast(list[dict[str, int]], sizes)
        if family.recurrent:
            given = [dict.fromkeys(SIZE_KEYS, 0) | size for size in given]
        listed = [[int(size[key]) for key in SIZE_KEYS] for size in given]
        good = all(heads > 0 < kv_heads or not (heads or kv_heads) for heads, kv_heads, _ in listed)
        if len(listed) != config.num_hidden_layers or not good:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"model {config._name_or_path!r}: {LAYERS_KEY} in config.json must give every layer "
            f"{', '.join(SIZE_KEYS)}, and num_hidden_layers is {config.num_hidden_layers}: "
            "the checkpoint is damaged, export it again."
        ) from None
    shapes = [LayerShape(heads, kv_heads, ffn, 0, latent=latent) for heads, kv_heads, ffn in listed]
    return tuple(replace(shape, head_dim=head_dim_of(config, family, number)) for number, shape in enumerate(shapes))
