"""Which family a model is of: by its type, by the user's word, or by what computes the same when it is cut.

Sizes alone do not say that a layout fits: slopes by the number of a head, norms over channels and heads in pairs leave
every tensor as long as the layout has it. So a small model of the same class is cut, and must compute what it computes
with the same units masked.
"""

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..system.errors import InputError
from ..system.quiet import quiet_transformers
from .discovery import check_text_model, find_units
from .families import BUILT_IN, FAMILIES, Family, check_not_refused, family_of
from .layered import layer_sizes, layered_class
from .layout import LayerShape, check_layout
from .nested import WHOLE
from .stock import FAMILY_KEY, HETEROGENEOUS, LAYERS_KEY, resized_config
from .units import Units

_NOT_SIZES = (
    "model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "quantization_config", WHOLE,
    LAYERS_KEY, FAMILY_KEY, *HETEROGENEOUS,
)  # fmt: skip
SMALL_VOCABULARY, SMALL_FFN, SMALL_DEPTH, TOKENS = 64, 96, 2, 12
SMALL_HEADS, MOST_GROUPED = 2, 4
"""KV heads of a small model, of which one goes (one is left, which divides every width); most query heads of each."""


def family_for(model: nn.Module, model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model, or the one that the user names.

    Raises:
        InputError: the model type is refused or not known; says what layout the model has; as `check_text_model`.
    """
    if override is None:
        check_not_refused(model_type)
    if isinstance(model, PreTrainedModel) and not isinstance(override, Family):
        check_text_model(model.config)
    if override is None and model_type and model_type not in FAMILIES and (options := _looks_like(model)):
        raise InputError(
            f"unknown model type {model_type!r}, whose modules look like the {options.split()[1]} layout: pass "
            f"{options} (a result that computes something else is never kept), or write its own "
            "(docs/add-a-family.md)."
        )
    family = family_of(model_type, override)
    check_layout(family)
    return family


def is_tested(config: PreTrainedConfig, family: str | Family | None) -> bool:
    """Whether a model's layout is one that is tested here: the user named none, and registered none for its type."""
    kind = config.model_type
    return family is None and kind in BUILT_IN and FAMILIES[kind] is BUILT_IN[kind]


def check_same(config: PreTrainedConfig, units: Units, keep: dict[str, Tensor]) -> None:
    """Whether a model computes the same cut as masked, before any training: for layouts that are not tested here.

    Args:
        keep: pool name -> (units,) bool; what might stay.
    Raises:
        InputError: it computes something else.
    """
    heads = any(not keep[pool.name].all() for pool in units.of_kind("kv_group", "query_head"))
    if computes_the_same(config, units.family, heads=heads) is not False:
        return
    without = heads and computes_the_same(config, units.family, heads=False)
    raise InputError(
        f"--family {units.family.name}: a small {config.model_type} that is cut so computes something else than one "
        f"that is masked: {'use --attention none' if without else 'use another --family'}, or write its own "
        "(docs/add-a-family.md)."
    )


def computes_the_same(
    config: PreTrainedConfig, family: Family, *, heads: bool = True, stock: bool = False
) -> bool | None:
    """Whether a small random model of a config's class computes the same with units cut and with them masked.

    Args:
        heads: cut heads beside channels.
        stock: the cut model must be one of the stock class; otherwise its layers may have sizes of their own.
    Returns:
        None where it cannot be told: no small model could be made, or it is none of a single stack of dense layers.
    """
    if (
        family.stacks
        or family.in_part
        or family.layers_vary
        or family.by_head
        or type(config) not in AutoModelForCausalLM._model_mapping
    ):
        return None
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            model = _small(config, family)
            units = find_units(model, family, "auto" if heads else "none")
        except Exception:  # a model's class raises whatever its parts do, at sizes it was not made for
            return None
        ids = torch.arange(3, 3 + TOKENS).unsqueeze(0)
        keep = {pool.name: torch.arange(pool.size) >= (pool.size + 2) // 3 for pool in units.pools}
        shapes = units.shapes_after(keep)
        try:
            dense = _logits(model, ids)
            cut = _cut(model, units, keep, shapes, stock=stock)
            _mask_(model, units, keep)
            masked, small = _logits(model, ids), _logits(cut, ids)
        except Exception:  # the same
            return False
    scale = float(masked.abs().max())
    moved = float((masked - dense).abs().max()) > 1e-3 * scale
    return moved and float((small - masked).abs().max()) <= 1e-4 * scale


def _looks_like(model: nn.Module) -> str | None:
    """The flags that name the first known layout with which a model is cut right; None: there is none."""
    if not isinstance(model, PreTrainedModel):
        return None
    tried: list[Family] = []
    for name, family in FAMILIES.items():
        if family.recurrent or family.layers_vary:  # what they need not have, other models have not
            continue
        try:
            find_units(model, family)
        except (InputError, AttributeError):
            continue
        if replace(family, name="") in tried:
            continue
        tried.append(replace(family, name=""))
        for heads in (True, False):
            if computes_the_same(model.config, family, heads=heads, stock=True):
                return f"--family {name}" + ("" if heads or family.no_heads else " --attention none")
    return None


def _small(config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """A model of a config's class of two layers and few heads, whose weights are wide enough to show a difference."""
    values = {key: value for key, value in copy.deepcopy(config).to_dict().items() if key not in _NOT_SIZES}
    names = config.attribute_map

    def read(name: str | None) -> int:
        return int(getattr(config, name, None) or 0) if name else 0

    queries = read(family.heads) or 1
    each = min(MOST_GROUPED, max(1, queries // (read(family.kv_heads) or queries)))
    head_dim = read(family.head_dim) or int(config.hidden_size) // queries
    sizes = {
        "hidden_size": SMALL_HEADS * each * head_dim,
        "num_hidden_layers": SMALL_DEPTH,
        "vocab_size": SMALL_VOCABULARY,
        family.heads: SMALL_HEADS * each,
        family.kv_heads: SMALL_HEADS,
        family.ffn: SMALL_FFN,
        family.head_dim: head_dim,
    }
    values |= {names.get(key, key): size for key, size in sizes.items() if key is not None}
    depth = int(config.num_hidden_layers)
    lists = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == depth}
    other = next((i for i in range(depth) if any(value[i] != value[0] for value in lists.values())), min(1, depth - 1))
    values |= {key: [value[0], value[other]] for key, value in lists.items()}
    values |= {key: 0 for key, value in values.items() if key.endswith("token_id") and value}
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config.model_type, **values), dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.copy_(noise if parameter.dim() > 1 or name.endswith("bias") else parameter + noise)
    return model.eval()


def _mask_(model: nn.Module, units: Units, keep: dict[str, Tensor]) -> None:
    """Let what goes say nothing: its columns of the linears that take it are zero."""
    for pool in units.pools:
        for member in pool.members:
            if member.dim == 1:
                linear: Any = model.get_submodule(member.linear)
                weight = linear.weight.T if isinstance(linear, Conv1D) else linear.weight
                weight[:, member.entries(~keep[pool.name])] = 0


def _cut(
    model: PreTrainedModel, units: Units, keep: dict[str, Tensor], shapes: tuple[LayerShape, ...], *, stock: bool
) -> PreTrainedModel:
    """The same model without what goes: of its stock class where that builds such sizes."""
    left: dict[tuple[str, int], list[Tensor]] = {}
    for pool in units.pools:
        for member in pool.members:
            left.setdefault((member.linear, member.dim), []).append(member.entries(keep[pool.name]))
    state = model.state_dict()
    for (path, dim), parts in left.items():
        index = torch.cat(parts).sort().values
        side = 1 - dim if isinstance(model.get_submodule(path), Conv1D) else dim
        state[f"{path}.weight"] = state[f"{path}.weight"].index_select(side, index)
        if dim == 0 and f"{path}.bias" in state:
            state[f"{path}.bias"] = state[f"{path}.bias"].index_select(0, index)
    try:
        config = resized_config(model.config, units.family, shapes[0])
        small: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        small.load_state_dict(state)
    except (InputError, RuntimeError):
        if stock:
            raise
        config = copy.deepcopy(model.config)
        setattr(config, LAYERS_KEY, layer_sizes(shapes, units.family))
        small = layered_class(config, units.family)._from_config(config, dtype=torch.float32)
        small.load_state_dict(state)
    return cast(PreTrainedModel, small.eval())


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast(Tensor, model(input_ids=ids, use_cache=False).logits)
