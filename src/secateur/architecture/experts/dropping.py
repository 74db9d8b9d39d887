"""Whole experts removed before training: which of them, and a router over those that stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...system.errors import InputError
from ...system.voice import speaks_python
from ..families import Family
from ..families.keys import put_, value_of
from .apart import Expert, ExpertList, expert_lists

LEAST_TOKENS = 32
"""Tokens that an expert of a layer has to have seen on average for means over its tokens to be compared."""


COUNTS = ("num_experts", "n_routed_experts", "num_router_classes")
"""Attributes of routers and models that count experts, some with others that compute nothing."""
ROUTING_BATCHES = 8
"""Batches from which experts are chosen that go before training."""


@dataclass(frozen=True)
class Dropped:
    """Experts that went before training."""

    experts: dict[str, list[int]]
    """Path of a layer's experts -> their numbers."""
    parameters: int
    by: str
    """How they were chosen."""


def gone_record(dropped: Dropped | None) -> dict[str, Any]:
    """What records say of them."""
    return {"gone": dropped.experts, "by": dropped.by} if dropped else {"gone": {}, "by": None}


def check_expert_count(config: PreTrainedConfig, family: Family, count: int) -> None:
    """Refuse a number of experts to keep.

    Raises:
        InputError: there are no experts, or none can go; as many as `count` or fewer; fewer than the router chooses for
            a token; or no whole number for each of the groups that it chooses first.
    """
    if family.experts is None:
        raise InputError(f"--experts {count}: a {config.model_type} has no experts: leave --experts out.")
    if family.experts_stay is not None:
        raise InputError(f"--experts {count}: {family.experts_stay}: leave --experts out.")
    have, chosen = int(value_of(config, family.num_experts)), _chosen(config)
    if len(set(chosen)) > 1:
        raise InputError(
            f"--experts {count}: the router chooses {min(chosen)} to {max(chosen)} experts for a token, by layer "
            f"({chosen}): leave --experts out."
        )
    for_token = chosen[0]
    groups, looked_into = groups_of(config)
    least = for_token
    if groups > 1:  # of each the router adds up the two best scores
        least = groups * max(2, -(-for_token // looked_into))
    if not least <= count < have or count % groups:
        remedy = f"give a number from {least} to {have - groups}" if least < have else "all stay: leave --experts out"
        of_groups = f" that {groups} divides, since the router chooses among {groups} groups" if groups > 1 else ""
        raise InputError(
            f"--experts {count}: the model has {have} experts a layer and chooses {for_token} for a "
            f"token: {remedy}{of_groups}."
        )


def check_experts_by(config: PreTrainedConfig, family: Family, count: int, by: str, tokens: int) -> None:
    """Refuse a way to choose experts that will have nothing to go by.

    Args:
        by: as `drop_experts` takes it.
        tokens: that the layers will read.
    Raises:
        InputError: weights that cannot be added up; too few tokens for means.
    """
    if by == "router" and family.weighs_inputs:
        raise _not_added_up(count, family)
    each = int(tokens * chosen_of(config)) // int(value_of(config, family.num_experts))
    if by == "reap" and each < LEAST_TOKENS:
        instead = "" if family.weighs_inputs else ", or --experts-by router"
        raise InputError(
            f"--experts {count}: the experts will see {each} tokens each on average, and the means of --experts-by "
            f"reap need {LEAST_TOKENS}: use more or larger batches (--steps, of which the first {ROUTING_BATCHES} "
            f"count, --batch-size, --seq-len){instead}."
        )


def choosing_rule(
    config: PreTrainedConfig, family: Family, count: int | None, by: str, asked: bool, tokens: int
) -> tuple[str, list[str]]:
    """How experts are chosen that go, and what to say of it: with too few tokens for means by the sum of weights.

    Args:
        count: experts to keep in each layer; None: all.
        asked: whether `by` was asked for by name, so that nothing goes in its place.
        tokens: that the layers will read.
    Raises:
        InputError: see `check_experts_by`.
    """
    if count is None:
        return by, []
    try:
        check_experts_by(config, family, count, by, tokens)
    except InputError:
        if asked or family.weighs_inputs:
            raise
        words = f"the batches before training have {tokens} tokens, too few for --experts-by reap"
        return "router", [f"{words}: experts go by the sum of their routing weights (--experts-by router)"]
    return by, []


def chosen_of(config: PreTrainedConfig) -> float:
    """Experts that the router chooses for a token, on average over layers; 1 of a model without."""
    chosen = _chosen(config)
    return sum(chosen) / len(chosen)


def _chosen(config: PreTrainedConfig) -> list[int]:
    """The same by layer, or of all layers in one entry."""
    inner = getattr(config, "ffn_config", None)
    given = (
        getattr(config, "num_experts_per_tok", None)
        or getattr(config, "moe_topk", None)
        or getattr(inner, "moe_top_k", None)
        or 1
    )
    return [int(each) for each in given] if isinstance(given, list | tuple) else [int(given)]


def groups_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Groups of equal size in which a router looks for experts, and how many of them it looks into."""
    groups = int(getattr(config, "n_group", None) or 1)
    return groups, int(getattr(config, "topk_group", None) or groups)


def drop_experts(model: PreTrainedModel, family: Family, count: int, by: str = "router") -> dict[str, list[int]]:
    """Keep the best `count` experts of each layer, and of each group that the router has; before LoRA is added.

    Args:
        by: `router`: the sum of the weights that the router gave to the expert; `reap`: the mean, over the tokens that
            it was given, of that weight times the norm of what the expert said (Lasby et al. 2025, arXiv 2510.13999).
    Returns:
        path of a layer's experts -> numbers of those that went.
    Raises:
        InputError: as `check_expert_count`; nothing counted what the router gives to each, or too little for a mean.
    """
    config = model.config
    check_expert_count(config, family, count)
    lists = expert_lists(model)
    if not lists or not all((experts.chosen + experts.mass).any() for experts in lists.values()):
        raise InputError(
            f"--experts {count}: nothing has counted what the router gives to each expert: call unstack_experts(model) "
            "first, set `counting` on the lists that expert_lists(model) finds, and run some batches."
        )
    scores = _scores(lists, family, count, by)
    groups, _ = groups_of(config)
    gone: dict[str, list[int]] = {}
    for path, experts in lists.items():
        order = scores[path].view(groups, -1).argsort(dim=1, descending=True, stable=True)
        places = order + torch.arange(groups).unsqueeze(1) * order.shape[1]
        gone[path] = sorted(experts.numbers[number] for number in places[:, count // groups :].flatten().tolist())
    take_out_experts(model, family, gone)
    return gone


def take_out_experts(model: PreTrainedModel, family: Family, gone: Mapping[str, list[int]]) -> None:
    """Take experts out of each layer, as many of all; before LoRA is added.

    The router loses its rows with them, so its probabilities are over the experts that stay.

    Args:
        gone: path of a layer's experts -> their numbers.
    """
    config, count = model.config, 0
    have = int(value_of(config, family.num_experts))
    for path, experts in expert_lists(model).items():
        stay = torch.tensor([place for place, number in enumerate(experts.numbers) if number not in gone[path]])
        count, numbers = len(stay), [experts.numbers[place] for place in stay.tolist()]
        left = (cast(Expert, experts[place]) for place in stay.tolist())
        small = ExpertList(left, numbers, experts.hands_on, experts.spare)
        model.set_submodule(path, small)
        layer = model.get_submodule(path.removesuffix(f".{family.experts}"))
        for name in (f"{family.router}.weight", *family.by_expert):
            _keep_entries_(layer, name, stay, have)
    for module in model.modules():  # routers, and the model itself for its loss of balance
        for name in COUNTS:
            if (number := vars(module).get(name, 0)) >= have:
                setattr(module, name, number - have + count)
    put_(config, family.num_experts, count)


def _scores(lists: dict[str, ExpertList], family: Family, count: int, by: str) -> dict[str, Tensor]:
    """Path of a layer's experts -> (experts,) what each is worth.

    Raises:
        InputError: there is no such number of them.
    """
    if by == "router":
        if any(experts.mass.isnan().any() for experts in lists.values()):
            raise _not_added_up(count, family)
        return {path: experts.mass for path, experts in lists.items()}
    few = {path: int(experts.chosen.sum()) // len(experts) for path, experts in lists.items()}
    if few := {path: tokens for path, tokens in few.items() if tokens < LEAST_TOKENS}:
        path, tokens = next(iter(few.items()))
        more = f" and {len(few) - 1} other layers" if len(few) > 1 else ""
        raise InputError(
            f"--experts {count}: the experts of {path}{more} have seen {tokens} tokens each on average, and their "
            f"means need {LEAST_TOKENS}: use larger batches (--batch-size, --seq-len), or --experts-by router."
        )
    return {path: experts.effect / experts.chosen.clamp_min(1) for path, experts in lists.items()}


def _not_added_up(count: int, family: Family) -> InputError:
    return InputError(
        f"--experts {count}: the router's weights are in what a {family.name}'s experts read already, so they "
        "cannot be added up: use --experts-by reap."
    )


def _keep_entries_(layer: nn.Module, name: str, stay: Tensor, have: int) -> None:
    """Leave of a tensor those rows (or columns, where it has no rows for experts) that `stay` has, and what it has
    beyond those of experts."""
    path, _, leaf = name.rpartition(".")
    holder: Any = layer.get_submodule(path)
    old = getattr(holder, leaf, None)  # some models of a type have none
    if old is None:
        return
    dim = 0 if old.shape[0] >= have else 1
    left = torch.cat([stay, torch.arange(have, old.shape[dim])])
    new = old.data.index_select(dim, left.to(old.device))
    setattr(holder, leaf, nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new)
    if leaf == "weight" and isinstance(holder, nn.Linear):
        holder.out_features = len(left)


@speaks_python()
def unused_experts(model: nn.Module) -> dict[str, list[int]]:
    """Path of a layer's experts -> numbers of those that no token of the training was given to, before any went.

    With several processes after `share_counts`.
    """
    lists = {path.removeprefix("base_model.model."): experts for path, experts in expert_lists(model).items()}
    found = {
        path: [number for number, chosen in zip(experts.numbers, experts.chosen.tolist(), strict=True) if not chosen]
        for path, experts in lists.items()
    }
    return {path: numbers for path, numbers in found.items() if numbers}
