"""What can be known before a rank pruner starts: whether adapter and options go together, and when it cuts."""

import warnings

from peft import LoraConfig, PeftModel
from torch import nn

from ..models.surgery import check_mergeable, lora_factors, lora_layers
from ..pruning.schedule import Schedule, make_schedule, make_stepwise
from ..system.errors import InputError
from .criteria import RANK_CRITERIA
from .layers import start_that_moves_base

BASES = ("given", "singular")
RECOVERIES = ("none", "compensate", "newton+compensate")


def check_adapter(model: nn.Module, merges: bool) -> None:
    """Whether the model's active adapter is one whose ranks can be pruned.

    Raises:
        InputError: it is not.
    """
    if not isinstance(model, PeftModel):
        raise InputError(f"rank pruning needs a PEFT model with LoRA, and this is a {type(model).__name__}.")
    for name in model.active_adapters:
        config = model.peft_config[name]
        if config.peft_type != "LORA":
            kind = str(config.peft_type).rpartition(".")[2]
            raise InputError(
                f"the adapter is {kind}: only plain LoRA has ranks to prune, so make it with a LoraConfig."
            )
        start = start_that_moves_base(config) if isinstance(config, LoraConfig) else None
        if start and not merges:
            warnings.warn(
                f"init_lora_weights={start!r} has moved a part of the base weights into the adapter, by its first "
                "rank: once its rank is pruned, what save_pretrained writes fits no model. Merge it "
                "(merge_and_unload), or begin with another start.",
                stacklevel=3,
            )
    check_mergeable(model)
    for path, layer in lora_layers(model).items():
        lora = lora_factors(layer)
        sides = lora.b.shape[0], lora.a.shape[1]
        if lora.a.shape[0] > min(sides):
            raise InputError(
                f"--init-rank {lora.a.shape[0]}: {path} is {sides[0]} x {sides[1]}, so a rank above {min(sides)} adds "
                f"nothing there: use at most {min(sides)}, or leave it out with --targets."
            )


def check_options(
    rank: int,
    ranks: list[int],
    *,
    recovery: str,
    damping: float,
    decay: float,
    allocation: str,
    criterion: str,
    basis: str,
    scaling: str,
    k1: int | None,
    k2: int | None,
) -> None:
    """Whether these are options that a pruner of an adapter with these ranks can have.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    lowest = min(ranks, default=0)
    if not ranks:
        raise InputError("the model has no LoRA layer: add one with get_peft_model first.")
    if not 1 <= rank <= lowest:
        raise InputError(f"--rank is {rank}: give a rank from 1 to the adapter's {lowest} (--init-rank).")
    if recovery not in RECOVERIES:
        raise InputError(f"--recovery is {recovery!r}: choose from {', '.join(RECOVERIES)}.")
    if recovery == "newton+compensate" and RANK_CRITERIA[criterion].curvature == "activations":
        raise InputError(
            f"--recovery {recovery} with --criterion {criterion}: a Newton step goes by the gradients' curvature "
            "and this cut by the activations', and one update cannot follow both: use --recovery compensate."
        )
    if allocation not in ("uniform", "global"):
        raise InputError(f"--allocation is {allocation!r}: choose uniform or global.")
    if basis not in BASES:
        raise InputError(f"--basis is {basis!r}: choose from {', '.join(BASES)}.")
    if scaling not in ("fixed", "rank"):
        raise InputError(f"--scaling is {scaling!r}: choose fixed or rank.")
    if basis == "singular" and RANK_CRITERIA[criterion].first_order:
        raise InputError(
            f"--basis singular with --criterion {criterion}: an average of |∂L/∂w · w| is known only for the "
            "components that it was taken of: use --basis given, or another criterion."
        )
    if not damping > 0:
        raise InputError(f"--damping is {damping}: it must be above 0.")
    if not 0 <= decay < 1:
        raise InputError(f"--fisher-decay is {decay}: give a number from 0 up to 1.")
    if (k1 is None) != (k2 is None):
        raise InputError("--k1 and --k2 go together: give both, or neither.")
    for name, value in (("--k1", k1), ("--k2", k2)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1.")


def rank_schedule(
    kind: str,
    start: float | int,
    end: float | int,
    frequency: int,
    total_steps: int,
    *,
    init_rank: int,
    rank: int,
    k1: int | None,
    k2: int | None,
) -> Schedule:
    """When components go: between `start` and `end`, or `k2` of them every `k1` steps from `start` on.

    Raises:
        InputError: the run is too short; says how many steps it takes.
    """
    if k1 is None or k2 is None or init_rank == rank:  # nothing goes: any schedule does
        return make_schedule(kind, start, end, frequency, total_steps)
    return make_stepwise(start, k1, k2, init_rank - rank, total_steps)
