"""Finding the prunable units in a model, by the layout of its family."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..config.pruning import BLOCKS, LAYERS, WIDTH
from ..system.errors import InputError
from .depth import Skipped, block_pools, check_blocks_go, check_depth, is_absent, layer_pool
from .experts import is_shared, repeated, unstack_experts
from .families import FAMILIES, Family, check_not_refused
from .layout import LayerShape, common_shape, kv_heads_of, linear_sizes
from .pools import by_channel, by_head, ffn_pools, head_pool, spare_of, submodule, taken_alone, together
from .quantised import entries
from .stock import auto_class, is_whole, resized_config
from .units import Linear, Place, Pool, Units, base_linear, sides_of


def find_units(model: nn.Module, family: Family, attention: str = "auto", kinds: Collection[str] = WIDTH) -> Units:
    """The prunable units of a base model (LoRA layers may wrap its linears).

    Sizes come from the linears' own shapes, so layers may differ (an earlier run's result).

    Args:
        attention: `auto` (KV groups where the family can lose some), `kv_group`, `query_head` or `none`.
        kinds: heads and channels, `layers` or `blocks`.
    Raises:
        InputError: a linear of the family's layout is not there, or its heads or layers cannot be pruned.
    """
    family = _variant(model, family)
    if LAYERS in kinds:
        check_depth(model, family)
        attention = "none"
    if BLOCKS in kinds:
        check_blocks_go(family)
        attention = attention if len(kinds) > 1 else "none"
    attention = attention_kind(family, attention)
    pools: list[Pool] = []
    places: list[Place] = []
    shapes: list[LayerShape] = []
    params: list[tuple[int, int]] = []
    again = _repeated(model, family)
    for stack in family.stacks or (family,):
        heads: list[Pool] = []
        for number, layer in enumerate(submodule(model, stack.layers, "").children()):
            place = Place(f"{stack.layers}.{number}", stack)
            if isinstance(layer, Skipped):
                params.append((0, 0))
                places.append(place)
                shapes.append(LayerShape(0, 0, 0, 0))
                continue
            linears = _linears(layer, place) if layer not in again else {}
            shape = _layer_shape(layer, stack, linears, place.prefix)
            if attention != "none" and shape.heads:
                heads.append(head_pool(attention, len(places), place, layer, linears, shape))
            inner = taken_alone(model, stack, heads, number)
            if "channels" in kinds:
                inner += ffn_pools(len(places), layer, place, linears, shape, getattr(model, "config", None))
            pools += inner
            if LAYERS in kinds:
                pools.append(layer_pool(len(places), layer, place, linears, shape))
            elif BLOCKS in kinds:
                pools += block_pools(len(places), layer, place, linears, shape, inner)
            params.append(_params(layer, stack, linears, shape))
            places.append(place)
            shapes.append(shape)
        if heads:
            pools.append(together(model, stack, heads))
    if family.recurrent is not None:
        shapes = _hybrid(shapes, family)
    if family.experts is not None and not any(shape.ffn or shape.beside or shape.gone for shape in shapes):
        raise InputError(
            f"no layer of the model has the experts ({family.experts}) that the {family.name} layout names: "
            "pass another --family."
        )
    of_attention, of_ffn = zip(*params, strict=True)
    return Units(family, tuple(pools), tuple(places), tuple(shapes), of_attention, of_ffn)


def check_text_model(config: PreTrainedConfig) -> None:
    """Refuse a text model that lies inside another one, whose config is about both, or that lacks blocks.

    Raises:
        InputError: how to take it out.
    """
    if not is_whole(config):
        raise InputError(
            f"model {str(config._name_or_path)!r}: some layers have no attention or no FFN (--units blocks), and "
            "it is not trained again: take the model that it was made from."
        )
    inner = config.get_text_config(decoder=True)
    if inner is config or config.is_encoder_decoder or config.model_type in FAMILIES:
        return
    check_not_refused(str(config.model_type))
    place = str(config._name_or_path) or "FOLDER"
    raise InputError(
        f"a {config.model_type} holds its text model ({inner.model_type}) beside others, and a text model is what can "
        f"be pruned: take it out with secateur extract-text {place} TEXT (of a model in memory, after "
        "model.save_pretrained(FOLDER)) and give that folder, or give prune the whole one's folder with --extract-text."
    )


def check_class(
    config: PreTrainedConfig,
    family: Family,
    wanted: LayerShape,
    model_class: str = "keep",
    *,
    trust_remote_code: bool = False,
) -> None:
    """Whether the stock class of a model type builds the sizes that its config is given, as the named family says.

    Raises:
        InputError: it builds others, so the result could not be written.
    """
    with torch.device("meta"):
        small = auto_class(config).from_config(
            resized_config(config, family, wanted, model_class), trust_remote_code=trust_remote_code
        )
    unstack_experts(small, family)
    try:
        found = common_shape(find_units(small, family, "none").shapes, family)
    except InputError:
        found = None
    if found != wanted:
        raise InputError(
            f"--family {family.name}: with {wanted} in its config, a {config.model_type} is built as "
            f"{found or 'something else'}: use --attention none, or --allocation protected, which comes with a "
            "modelling file."
        )


def attention_kind(family: Family, attention: str) -> str:
    """`auto` made definite.

    Raises:
        InputError: the architecture cannot lose what is asked for, with the reason.
    """
    if attention == "auto":
        return "none" if family.no_heads else "kv_group"
    if attention != "none" and family.no_heads:
        raise InputError(
            f"--attention {attention}: {family.name} cannot lose heads: {family.no_heads}. Leave --attention out."
        )
    if attention == "query_head" and "query_head" not in family.kinds:
        raise InputError(
            f"--attention query_head: each of {family.name}'s query heads has a KV head of its own, so neither goes "
            "alone: use --attention kv_group."
        )
    return attention


def _variant(model: nn.Module, family: Family) -> Family:
    """The layout that the model has, of those that its type may have."""
    while family.otherwise is not None:
        stack = family.stacks[0] if family.stacks else family
        layers = [layer for layer in submodule(model, stack.layers, "").children() if not isinstance(layer, Skipped)]
        named = stack.attention_linears if stack.latent else stack.ffn_linears
        if family.otherwise_with:
            if not any(_has(layer, family.otherwise_with) for layer in layers):
                break
        elif any(all(_has(layer, path.format(0)) for path in named) for layer in layers):
            break
        family = family.otherwise
    return family


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _linears(layer: nn.Module, place: Place) -> dict[str, Linear]:
    """Path in the layer -> linear: those of attention, then of the FFN or of every expert."""
    family = place.family
    if family.dense_only and _has(layer, family.dense_only):
        raise InputError(
            f"{place.prefix} has experts, and the config of a {family.name} has one width for these and for dense "
            "FFNs: a model without experts (num_experts: 1) can be pruned."
        )
    lacks = family.recurrent is not None and not all(_has(layer, path) for path in family.attention_linears)
    paths = [] if lacks or is_absent(layer, family.attention) else [*family.attention_linears]
    if family.layers_vary:
        paths = [path for path in paths if _has(layer, path)]
    if family.experts is None:
        lacks = family.recurrent is not None and not _has(layer, family.mlp_out)
        paths += [] if lacks or (family.mlp_in and is_absent(layer, family.mlp_out)) else [*family.ffn_linears]
    else:
        for beside in family.beside:
            if beside.stock and _has(layer, f"{beside.at}.{beside.stock[-1]}"):
                raise _not_apart(f"{place.prefix}.{beside.at} has linears whose names PEFT takes for stacked experts'")
            paths += beside.linears if _has(layer, beside.output) else ()
        if _has(layer, family.experts):
            experts = layer.get_submodule(family.experts)
            if not isinstance(experts, nn.ModuleList):
                raise _not_apart(
                    f"{place.prefix}.{family.experts} holds its experts in tensors of three dimensions, where no LoRA "
                    "and no mask can reach a channel"
                )
            paths += [path.format(expert) for expert in range(len(experts)) for path in family.ffn_linears]
    return {path: base_linear(submodule(layer, path, place.prefix)) for path in paths}


def _repeated(model: nn.Module, family: Family) -> set[nn.Module]:
    if not is_shared(model, family):
        raise _not_apart(f"layers share their {family.shared} by its weights, which LoRA would part")
    return repeated(model, family)


def _not_apart(why: str) -> InputError:
    return InputError(f"{why}: call secateur.unstack_experts(model) before LoRA is added.")


def _layer_shape(layer: nn.Module, family: Family, linears: dict[str, Linear], prefix: str) -> LayerShape:
    there = any(path in linears for path in family.attention_linears)
    attention = submodule(layer, family.attention, prefix) if there or family.recurrent is None else None
    head_dim = _head_dim(attention, family) if attention is not None else 0
    latent = family.latent if attention is not None else None
    nope, value = (int(getattr(attention, name)) for name in latent) if latent else (0, 0)
    value = int(getattr(attention, family.value_dim_at)) if family.value_dim_at else value
    if family.attention_of and there:
        heads, kv_heads = (_told(attention, family, size) for size in ("heads", "kv_heads"))
    else:
        heads = sides_of(linears[family.o])[1] // (value or head_dim) if there else 0
        key_rows = sides_of(linears[family.k])[0] if family.k in linears else 0
        kv_heads = kv_heads_of(family, heads, head_dim, key_rows, (nope, value)) if there else 0
    if family.layers_vary and not kv_heads:  # those of another layer
        kv_heads = heads // int(getattr(attention, "num_key_value_groups", 1))
    out = linears.get(family.mlp_out.format(0)) if family.mlp_in else None
    width = sides_of(out)[1] if out is not None else 0
    widths = {each.name: sides_of(linears[each.output])[1] for each in family.beside if each.output in linears}
    beside = tuple((name, size) for name, size in sorted(widths.items()) if size)
    shape = LayerShape(heads, kv_heads, width, head_dim, beside, (nope, value))
    whole = not there or (kv_heads > 0 and heads % kv_heads == 0)
    for (path, dim), size in linear_sizes(family, shape).items() if whole else ():
        whole &= path not in linears or sides_of(linears[path])[dim] == size
    if not whole:
        sizes = ", ".join(f"{path} {sides_of(linear)}" for path, linear in linears.items())
        raise InputError(
            f"{prefix}: its linears ({sizes}) do not make whole groups of heads of {head_dim} and whole channels: "
            f"the checkpoint does not follow the {family.name} layout."
        )
    return shape


def _params(layer: nn.Module, family: Family, linears: dict[str, Linear], shape: LayerShape) -> tuple[int, int]:
    """Parameters of a layer's attention and of its FFNs that count."""
    own = sum(_parameters(linears[path]) for path in family.attention_linears if path in linears)
    beside = sum(held.numel() for held in by_head(layer, family).values()) if shape.heads else 0
    unused = 0 if (spare := spare_of(layer, family)) is None else spare.numel()
    unused += sum(entries(linear.weight) for linear in by_channel(layer, family).values()) if shape.ffn else 0
    return own + beside, sum(map(_parameters, linears.values())) - own + unused


def _head_dim(attention: nn.Module, family: Family) -> int:
    whole, _, heads = family.head_dim_at.partition(" // ")
    return int(getattr(attention, whole)) // (int(getattr(attention, heads)) if heads else 1)


def _told(attention: nn.Module | None, family: Family, size: str) -> int:
    """A size of an attention, of one of `LayerShape.sizes`, by the attribute that holds it."""
    held = {size: int(getattr(attention, name)) for name, size in family.attributes.items()}
    return held[size] if size in held else held["heads"] // held["groups"]


def _hybrid(shapes: list[LayerShape], family: Family) -> list[LayerShape]:
    """The shapes of layers of which some have no attention, whose heads would be of the size that the others' are.

    Raises:
        InputError: no layer has attention, or none an FFN: the model has another layout.
    """
    head_dim = max(shape.head_dim for shape in shapes)
    if not head_dim or not any(shape.ffn or shape.beside for shape in shapes):
        missing = family.mlp_out if head_dim else family.o
        raise InputError(
            f"no layer of the model has the {missing} that the {family.name} layout names: pass another --family."
        )
    latent = max(shape.latent for shape in shapes)
    return [replace(shape, head_dim=head_dim, latent=latent) for shape in shapes]


def _parameters(linear: nn.Module) -> int:
    return sum(map(entries, linear.parameters()))
