"""LoRA on a mixture of experts: which linears PEFT can name there, and adapters that name experts in other ways.

PEFT takes the names that experts' linears had before transformers stacked them (`w1`, `down_proj`, ...) for the stacked
tensors, wherever the model's type is that of a mixture: of other linears of these names too, without a word. Experts
that are apart (`architecture.experts`) have names of their own, so that nothing of this reaches them.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...system.errors import InputError
from ..families import Family
from ..units import sides_of
from .apart import Expert, expert_lists, expert_names
from .shared import find, tied_linears
from .stock_tensors import STOCK_NAMES

APART = re.compile(r"base_model\.model\.(.+\.experts)\.(\d+)\.(\w+)\.lora_([AB])\.weight")
"""A factor of one expert's linear, by the name that older versions gave it, or that it has apart."""
BESIDE = re.compile(r"base_model\.model\.(.+)\.(\w+)\.lora_([AB])\.weight")
"""A factor of a linear of an FFN beside the experts, by the class's name."""
STACKED = re.compile(r"base_model\.model\.(.+\.experts)(?:\.base_layer)?\.lora_([AB])\.weight")
"""A factor of all experts of a layer, as PEFT writes it for stacked tensors."""
HALVES = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1}
"""What is one half of the rows of gate and up in one."""
WHOLE, DOWN = ("gate_up", "gate_up_proj"), ("down", "down_proj", "w2")


def names_apart(names: Iterable[str], experts: tuple[str, str]) -> list[str]:
    """Names of linears for experts that are apart, whichever way the user names theirs.

    Args:
        experts: what the two linears of an expert are called there.
    """
    gate_up, down = experts
    known = dict.fromkeys((*HALVES, *WHOLE), gate_up) | dict.fromkeys(DOWN, down)
    return list(dict.fromkeys(found for name in names for found in (known.get(name), name) if found))


def family_names_apart(names: Iterable[str], family: Family) -> list[str]:
    """The same of a model of this family; of one without experts the names as they are."""
    return list(names) if family.experts is None else names_apart(names, expert_names(family))


def name_experts_(lora: LoraConfig, model: nn.Module) -> None:
    """Aim LoRA at experts that are apart where it names stacked ones, and leave out what PEFT would misread."""
    experts = _names_in(model)
    if experts is None or isinstance(lora.target_modules, str) or not lora.target_modules:
        return
    names = names_apart(sorted(lora.target_modules), experts)
    moved = misread(names, model)
    lora.target_modules = [name for name in names if name not in moved]


def aims(target: str, model: nn.Module) -> list[str]:
    """The names that `--targets` means with one of its own."""
    experts = _names_in(model)
    return [target] if experts is None else names_apart([target], experts)


def misread(names: Iterable[str], model: nn.Module) -> set[str]:
    """Those of the names that PEFT would aim at stacked experts, whatever else is called so in this model."""
    return {name for name in names if _moved(name, model)}


def adaptable(model: nn.Module) -> list[str] | str:
    """What LoRA on all linears is told: `all-linear`, or in a mixture the names that PEFT can give them.

    Raises:
        InputError: PEFT can name none.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    names = dict.fromkeys(path.rpartition(".")[2] for path in linears)
    wide = {path.rpartition(".")[2] for path, m in linears.items() if min(sides_of(m)) > 1}  # not a gate of one output
    moved = misread(names, model) | (names.keys() - wide) | _refused(names, model)
    if names and len(moved) == len(names):
        raise InputError(
            f"PEFT takes all of this model's linears ({', '.join(names)}) for a mixture's stacked experts, where no "
            "rank can be pruned: it cannot be adapted."
        )
    return [name for name in names if name not in moved] if moved or _moved("all-linear", model) else "all-linear"


def lost_on_reading(paths: Iterable[str], model: nn.Module) -> list[str]:
    """Those of the linears whose LoRA PEFT would not find in an adapter's files: it renames what it reads as a model's
    files are, and some of transformers' patterns also meet the names that the model has now (Laguna's
    `shared_expert.` those of `shared_experts`). And those whose weights stand in several places (Zamba): whoever merges
    the adapter would add to them in each."""
    names = {f"base_model.model.{path}.lora_A.weight": path for path in paths}
    given = {name: torch.zeros(1, 1) for name in names}
    found = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), given)
    tied = tied_linears(model)
    return [path for name, path in names.items() if name not in found or path in tied]


def _refused(names: Iterable[str], model: nn.Module) -> set[str]:
    """Those of the names on which PEFT puts no LoRA in a model of this type (the projections of Mamba layers)."""
    found = set()
    for name in names:
        probe = nn.Module()
        probe.linear = nn.ModuleDict({name: nn.Linear(2, 2)})
        vars(probe)["config"] = getattr(model, "config", None)
        try:
            inject_adapter_in_model(LoraConfig(target_modules=[f"linear.{name}"]), probe)
        except ValueError:
            found.add(name)
    return found


def _moved(name: str, model: nn.Module) -> bool:
    lora = LoraConfig(target_modules=name if name == "all-linear" else [name])
    asked = lora.target_modules
    try:
        convert_peft_config_for_transformers(lora, model=model, conversions=None)
    except ValueError:  # it wants the other half of a pair too
        return True
    return bool(lora.target_modules != asked)


def _names_in(model: nn.Module) -> tuple[str, str] | None:
    """What the linears of the model's experts are called, where these are apart."""
    found = (expert for experts in expert_lists(model).values() for expert in experts if isinstance(expert, Expert))
    return next((expert.names for expert in found), None)


def for_experts_apart(
    tensors: dict[str, Tensor], lora: LoraConfig, model: nn.Module
) -> tuple[dict[str, Tensor], LoraConfig]:
    """An adapter's tensors and configuration for a model whose experts are apart; others are as they were.

    Two linears that are one there (`w1` and `w3`) become one of twice the rank: A on A, B beside B.

    Raises:
        InputError: it trains what has no linear of its own here (a router), or what PEFT cannot name.
    """
    experts = _names_in(model)
    if experts is None:
        return tensors, lora
    found: dict[str, dict[str, dict[str, Tensor]]] = {}  # linear -> what the adapter calls it -> factors
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if apart := APART.fullmatch(name):
            path = f"{_place(apart[1], model)}.{apart[2]}.{experts[apart[3] in DOWN]}"
            found.setdefault(path, {}).setdefault(f"{apart[1]}.{apart[2]}.{apart[3]}", {})[apart[4]] = tensor
        elif (beside := BESIDE.fullmatch(name)) and isinstance(find(model, beside[1]), Expert):
            path = f"{beside[1]}.{experts[beside[2] in DOWN]}"
            found.setdefault(path, {}).setdefault(f"{beside[1]}.{beside[2]}", {})[beside[3]] = tensor
        elif stacked := STACKED.fullmatch(name):
            a, b = (tensors[re.sub(r"lora_[AB]", f"lora_{letter}", name)] for letter in "AB")
            for path, leaf, part in _split(_place(stacked[1], model), tensor, stacked[2], a, b, model):
                found.setdefault(path, {}).setdefault(f"{stacked[1]}.{leaf}", {})[stacked[2]] = part
        else:
            others[name] = tensor
    linears = {path: _joined(path, parts, lora, model) for path, parts in found.items()}
    factors = {
        f"base_model.model.{path}.lora_{f}.weight": t for path, (ab, _) in linears.items() for f, t in ab.items()
    }
    return others | factors, _configured(lora, linears, others, model)


def _place(path: str, model: nn.Module) -> str:
    """Path of a layer's experts in the model (Mixtral's were once in `block_sparse_moe`)."""
    lists = expert_lists(model)
    for candidate in (path, path.replace(".block_sparse_moe.", ".mlp.")):
        if candidate in lists:
            return candidate
    raise InputError(f"the adapter has experts in {path}, where this model has none: it is another model's.")


def _split(
    place: str, tensor: Tensor, factor: str, a: Tensor, b: Tensor, model: nn.Module
) -> Iterator[tuple[str, str, Tensor]]:
    """Each expert's factor out of those that PEFT has in one: A (experts · r, in), B (out, r · experts)."""
    experts = expert_lists(model)[place]
    names = cast(Expert, experts[0]).names
    sides = cast(Tensor, experts[0].get_submodule(names[0]).weight).shape
    which = int((b.shape[0], a.shape[1]) != tuple(sides))
    count = len(experts)
    if a.shape[0] % count or b.shape[1] != a.shape[0]:
        raise InputError(f"the adapter's factors in {place} are not those of {count} experts: it is another model's.")
    parts = tensor.unflatten(0, (count, -1)) if factor == "A" else tensor.unflatten(1, (-1, count)).permute(2, 0, 1)
    for number in range(count):
        yield f"{place}.{number}.{names[which]}", STOCK_NAMES[which], parts[number].contiguous()


def _joined(
    path: str, parts: dict[str, dict[str, Tensor]], lora: LoraConfig, model: nn.Module
) -> tuple[dict[str, Tensor], float]:
    """One linear's factors, and the alpha that keeps its scaling."""
    if any(len(factors) < 2 for factors in parts.values()):
        raise InputError(f"the adapter has one factor of two of {path}: it is damaged, copy it again.")
    alphas = {_pattern(lora.alpha_pattern, name, lora.lora_alpha) for name in parts}
    ranks = {factors["A"].shape[0] for factors in parts.values()}
    (alpha, *other), (rank, *others) = alphas, ranks
    if other or others:
        raise InputError(f"the adapter has several ranks or scalings in {', '.join(parts)}, which are one linear here.")
    leaves = {name.rpartition(".")[2]: factors for name, factors in parts.items()}
    if not leaves.keys() <= HALVES.keys():
        (factors,) = leaves.values()
        return factors, alpha
    half = {HALVES[leaf]: factors for leaf, factors in leaves.items()}
    some = next(iter(half.values()))
    nothing = {"A": some["A"][:0], "B": some["B"][:, :0]}
    gate, up = (half.get(number, nothing) for number in (0, 1))
    a, b = torch.cat([gate["A"], up["A"]]), torch.block_diag(gate["B"], up["B"])
    twice = a.shape[0] / rank
    return {"A": a, "B": b}, alpha * (twice**0.5 if lora.use_rslora else twice)


def _pattern(patterns: dict[str, Any] | None, name: str, otherwise: Any) -> Any:
    """A module's entry among PEFT's patterns."""
    return next((v for k, v in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({k})", name)), otherwise)


def _configured(
    lora: LoraConfig, linears: dict[str, tuple[dict[str, Tensor], float]], others: dict[str, Tensor], model: nn.Module
) -> LoraConfig:
    """The configuration that makes these factors."""
    paths = [name.removeprefix("base_model.model.").partition(".lora_")[0] for name in others if ".lora_" in name]
    unnamed = misread({path.rpartition(".")[2] for path in paths}, model)
    if found := [path for path in paths if path.rpartition(".")[2] in unnamed]:
        raise InputError(
            f"the adapter has LoRA on {found[0]}, a name that PEFT takes for a mixture's stacked experts or router: it "
            "cannot be pruned. Merge it into its model first (merge_and_unload), with the versions that trained it."
        )
    ranks, alphas = dict(lora.rank_pattern or {}), dict(lora.alpha_pattern or {})
    for path, (factors, alpha) in linears.items():
        leaf, rank = path.rpartition(".")[2], factors["A"].shape[0]
        if (ranks.setdefault(leaf, rank), alphas.setdefault(leaf, alpha)) != (rank, alpha):
            raise InputError(f"the adapter has other ranks in some experts ({path}: {rank}): it cannot be loaded here.")
    everywhere = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    kinds = set(map(_kind, linears))
    partly = {path.rpartition(".")[2] for path in everywhere if _kind(path) not in kinds}
    ends = {".".join(path.split(".")[-2 if path.rpartition(".")[2] in partly else -1 :]) for path in linears}
    named = lora.target_modules if isinstance(lora.target_modules, set | list) else paths
    apart = {name for name in named if name in (*HALVES, *WHOLE, *DOWN)}
    targets = sorted(ends | (set(named) - apart - misread(named, model)))
    return replace(
        lora, target_modules=targets, target_parameters=None, rank_pattern=ranks, alpha_pattern=alphas,
        init_lora_weights=True,
    )  # fmt: skip


def _kind(path: str) -> str:
    """A path without the numbers of layers and experts."""
    return re.sub(r"\.\d+(?=\.)", ".*", path)


def stacked_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """An adapter's shapes as PEFT loads it into a model whose experts are stacked, where it names them one by one."""
    experts: dict[str, dict[str, list[tuple[int, ...]]]] = {}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if apart := APART.fullmatch(name):
            place = apart[1].replace(".block_sparse_moe.", ".mlp.")
            layer = f"{place}{'' if apart[3] in DOWN else '.base_layer'}"
            experts.setdefault(layer, {}).setdefault(apart[4], []).append(shape)
        else:
            found[name] = shape
    for layer, factors in experts.items():
        a, b = factors.get("A", []), factors.get("B", [])
        pair = 2 if layer.endswith(".base_layer") else 1  # two linears in one, each with a rank of its own
        found[f"base_model.model.{layer}.lora_A.weight"] = (sum(shape[0] for shape in a), a[0][1] if a else 0)
        rows = pair * b[0][0] if b else 0
        found[f"base_model.model.{layer}.lora_B.weight"] = (rows, sum(shape[1] for shape in b))
    return found
