"""Whole layers that go: what stands in their place while the model trains, and what a config says of the rest."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import getsource
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from ..system.errors import InputError
from .families import Family
from .layout import ATTENTION_BLOCK, FFN_BLOCK, INSIDE, LAYER, LayerShape, beside_parts, parts
from .quantised import entries
from .units import GAIN, Linear, Place, Pool, Units, base_linear, pool_of

COUNT = "num_hidden_layers"
NOT_OF_LAYERS = re.compile(r"(token_ids?|architectures|suppress_tokens|keys_to_ignore.*)$")
"""Lists of a config that have no entry for each layer, however long they are."""
PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern")
"""Keys that say which layers have a window by a period, which layers that go break."""
FIRST_LAYERS = ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Keys that say how many layers from the first on are of one kind."""
BY_NUMBER = {
    "scale_attn_by_inverse_layer_idx": "each layer divides its attention by its number",
    "num_kv_shared_layers": "some layers use the keys and values of others",
    "moe_layer_interval": "every so many layers one has experts, by its number",
    "n_layers_per_attn_res_block": "every so many layers one begins a block, by its number",
}
"""Config keys that tie a layer to its number, or to another layer."""


class Skipped(nn.Module):
    """In the place of a layer that went: hands the hidden states on.

    With a cache it leaves a mark of one number a token, since a model asks its first layer how long the cache is.

    Args:
        layer: that went.
        number: of the layer.
        in_tuple: whether the model's layers return their hidden states in a tuple.
    """

    def __init__(self, layer: nn.Module, number: int, in_tuple: bool) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # which some models read of their layers (attention_type)
            if isinstance(value, str | int | float | bool) and not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self.number, self.in_tuple = number, in_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        for cache in (value for value in (*args, *kwargs.values()) if isinstance(value, Cache)):
            mark = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.number)
        return (hidden_states,) if self.in_tuple else hidden_states


class NoLinear(nn.Module):
    """In the place of a linear of what went: no outputs, or as many as it had, which are its bias."""

    absent = True

    def __init__(self, linear: Any, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs if outputs is not None else getattr(linear, "nf", None) or linear.out_features
        self.bias = linear.bias if outputs is None else None

    def forward(self, x: Tensor) -> Tensor:
        nothing = x.new_zeros(*x.shape[:-1], self.outputs)
        return nothing if self.bias is None else nothing + self.bias


class NoAttention(nn.Module):
    """In the place of an attention that went: adds the last linear's bias, and marks in a cache how long it is."""

    absent = True
    layer_idx: int

    def __init__(self, attention: Any, last: str) -> None:
        super().__init__()
        for name, value in vars(attention).items():
            if isinstance(value, (str, int, float, bool)) and not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self.last = last
        self.add_module(last, NoLinear(attention.get_submodule(last)))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        for cache in (value for value in (*args, *kwargs.values()) if isinstance(value, Cache)):
            mark = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.layer_idx)
        return [self.get_submodule(self.last)(hidden_states), None]  # a list: OpenAI GPT adds it to one


ABSENT_SOURCE = "\n\n".join(getsource(each) for each in (NoLinear, NoAttention))
"""For modelling files."""


def is_absent(layer: nn.Module, path: str) -> bool:
    """Whether something else stands in the place of a layer's attention, or of a linear of its FFN."""
    try:
        return bool(getattr(layer.get_submodule(path), "absent", False))
    except AttributeError:
        return False


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a layer is called with, (batch, tokens, width)."""
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def leaving(output: Any) -> Tensor:
    """The hidden states of what a layer returned."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


def with_states(output: Any, states: Tensor) -> Any:
    """What a layer returned, with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple | list) else states


def check_depth(model: nn.Module, family: Family) -> None:
    """Refuse a model whose layers cannot go one by one.

    Raises:
        InputError: says why.
    """
    config: Any = getattr(model, "config", None)
    if family.layers_stay:
        raise InputError(f"--units layers: {family.layers_stay}: prune heads and channels.")
    if family.stacks or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"--units layers: a {family.name} has layers of several kinds under one number in its config, and the "
            "decoder's read the encoder's: prune heads and channels."
        )
    if family.recurrent:
        raise InputError(
            f"--units layers: a {family.name} is a hybrid, and its {family.recurrent} stay: prune heads and channels."
        )
    if family.layers_vary:
        raise InputError(f"--units layers: the config of a {family.name} gives layers sizes by number: prune channels.")
    if getattr(config, "indexer_types", None):
        raise InputError(
            f"--units layers: layers of a {family.name} hand on which tokens they look at: prune heads and channels."
        )
    for key, why in BY_NUMBER.items():
        value = getattr(config, key, None)
        if value and not (key == "moe_layer_interval" and value == 1):
            raise InputError(f"--units layers: with {key} = {value} {why}, so none can go: prune heads and channels.")


def layer_pool(number: int, layer: nn.Module, place: Place, linears: dict[str, Linear], shape: LayerShape) -> Pool:
    """A layer as one unit: it is scored by the linears that it has of the layout, and all of it goes."""
    family = place.family
    chosen = [part for part in parts(family, shape, "attention") if part.linear in linears]
    there = {family.mlp_out.format(number) for number in range(len(linears))} & linears.keys()
    for expert in range(len(there)):
        chosen += parts(family, shape, "ffn", expert)
    chosen += [part for found in beside_parts(family, shape).values() for part in found]
    pool = pool_of(number, LAYER, place, linears, chosen, 1)
    return replace(pool, unit_params=_own_entries(layer), path=place.prefix)


def block_pools(
    number: int,
    layer: nn.Module,
    place: Place,
    linears: dict[str, Linear],
    shape: LayerShape,
    inner: Sequence[Pool] = (),
) -> list[Pool]:
    """A layer's attention and its FFN as one unit each: all of them but the last linear's bias.

    Args:
        inner: pools of heads and channels that are units themselves: `unit_params` is of what they leave.
    """
    family, pools = place.family, []
    attention = layer.get_submodule(family.attention)
    ffn = [layer.get_submodule(path) for path in family.ffn_linears]
    for kind, role, there, modules, last in (
        (ATTENTION_BLOCK, "attention", shape.heads, [attention], family.o),
        (FFN_BLOCK, "ffn", shape.ffn, ffn, family.mlp_out),
    ):
        if there:
            pool = pool_of(number, kind, place, linears, parts(family, shape, role), 1)
            stays = linears[last].bias
            params = sum(_own_entries(module) for module in modules) - (0 if stays is None else len(stays))
            params -= sum(own.size * own.unit_params for own in inner if INSIDE[own.kind] == kind)
            pools.append(replace(pool, unit_params=params))
    return pools


def _own_entries(module: nn.Module) -> int:
    """Of a module's parameters, without LoRA's and gains."""
    named = module.named_parameters()
    return sum(entries(p) for name, p in named if ".lora_" not in f".{name}" and not name.endswith(GAIN))


def check_blocks_go(family: Family) -> None:
    """Refuse a layout whose attention and FFN cannot go apart.

    Raises:
        InputError: says why.
    """
    if family.recurrent:
        raise InputError(
            f"--units blocks: a {family.name} is a hybrid, and its {family.recurrent} stay: prune heads and channels."
        )
    if why := family.no_heads if not family.alike_only else "its config has one size for layers of every kind":
        raise InputError(
            f"--units blocks: a {family.name}'s attention cannot go alone: {why.split(':')[0]}. Use --units layers, or "
            "prune heads and channels."
        )


def take_out_(base: nn.Module, units: Units, pool: Pool) -> list[nn.Parameter]:
    """Put what stands for a layer or block that went in its place; the parameters that were trained in it and are no
    more."""
    place = units.places[pool.layer]
    family, layer = place.family, base.get_submodule(place.prefix)
    before = dict(layer.named_parameters())
    if pool.kind == LAYER:
        number = int(place.prefix.rpartition(".")[2])
        base.set_submodule(place.prefix, Skipped(layer, number, family.in_tuple).train(layer.training))
    elif pool.kind == ATTENTION_BLOCK:
        attention, last = layer.get_submodule(family.attention), family.o.removeprefix(f"{family.attention}.")
        attention.set_submodule(last, base_linear(attention.get_submodule(last)))
        layer.set_submodule(family.attention, NoAttention(attention, last))
    else:
        for path in family.mlp_in:
            if not is_absent(layer, path):
                layer.set_submodule(path, NoLinear(base_linear(layer.get_submodule(path)), 0))
        layer.set_submodule(family.mlp_out, NoLinear(base_linear(layer.get_submodule(family.mlp_out))))
    after = set(base.get_submodule(place.prefix).parameters())
    return [parameter for parameter in before.values() if parameter.requires_grad and parameter not in after]


def layer_prefixes(units: Units) -> dict[str, str]:
    """Name of a pool of one layer -> the layer's path."""
    return {pool.name: pool.path for pool in units.of_kind(LAYER)}


def kept_layers(shapes: Sequence[LayerShape]) -> list[int]:
    """Numbers of the layers that are there, ascending."""
    return [number for number, shape in enumerate(shapes) if not shape.gone]


def without_layers(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """A copy of a config that has the layers `kept` alone: their number, and every list that has an entry for each.

    Raises:
        InputError: the config class takes no such numbers.
    """
    count = int(config.num_hidden_layers)
    if len(kept) == count:
        return config
    key = config.attribute_map.get(COUNT, COUNT)
    values = config.to_dict()
    changes: dict[str, Any] = {
        name: [value[number] for number in kept]
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == count and not NOT_OF_LAYERS.search(name)
    }
    changes[key] = len(kept)
    for name in FIRST_LAYERS:
        if isinstance(first := values.get(name), int):
            changes[name] = sum(number < first for number in kept)
    if isinstance(scale := values.get("scale_depth"), float | int):  # over the root of the number of layers
        changes["scale_depth"] = scale * (len(kept) / count) ** 0.5
    if isinstance(last := values.get("moe_layer_end_index"), int) and last >= 0:
        changes["moe_layer_end_index"] = sum(number <= last for number in kept) - 1
    if isinstance(sparse := values.get("moe_layers"), list | tuple):
        changes["moe_layers"] = [place for place, number in enumerate(kept) if number in sparse]
    if isinstance(dense := values.get("mlp_only_layers"), list | tuple):
        step = int(values.get("decoder_sparse_step") or 1)
        old = {number for number in range(count) if number in dense or (number + 1) % step}
        changes |= {"mlp_only_layers": [place for place, number in enumerate(kept) if number in old]}
        changes |= {"decoder_sparse_step": 1} if "decoder_sparse_step" in values else {}
    small = copy.deepcopy(config)
    for name in (name for name in PATTERNS if name in vars(small)):
        delattr(small, name)
    try:
        with_changes = type(config).from_dict({**small.to_dict(), **changes})
    except Exception as error:  # of transformers' validators, whose classes differ by version
        raise InputError(
            f"{config.model_type}'s config class refuses {len(kept)} layers: {' '.join(str(error).split())}"
        ) from None
    with_changes._name_or_path = config._name_or_path
    return with_changes
