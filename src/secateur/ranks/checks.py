"""What can be known before a rank pruner starts: whether adapter and options go together, and when it cuts."""

import warnings

from peft import LoraConfig, PeftModel
from torch import nn

from ..architecture.experts.lora import APART, STACKED
from ..config.adapt import AdaptConfig
from ..config.ranks import RankOptions
from ..models.adapter import lora_config_of, read_adapter, start_that_moves_base
from ..models.surgery import check_mergeable, is_embedding, lora_factors, lora_layers
from ..pruning.checks import check_adapter_kind, check_kind
from ..pruning.schedule import Schedule, make_schedule, make_stepwise
from ..system.errors import InputError, all_faults
from .criteria import RANK_CRITERIA


def check_adapter(model: nn.Module, merges: bool) -> None:
    """Whether the model's active adapter is one whose ranks can be pruned.

    Raises:
        InputError: it is not.
    """
    check_kind(model)
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
    check_adapter_kind(model)
    check_mergeable(model)
    for path, layer in lora_layers(model).items():
        if is_embedding(layer):
            raise InputError(f"{path}: LoRA on an embedding keeps its rank: leave it out with --targets.")
        lora = lora_factors(layer)
        sides = lora.b.shape[0], lora.a.shape[1]
        if lora.a.shape[0] > min(sides):
            raise InputError(
                f"--init-rank {lora.a.shape[0]}: {path} is {sides[0]} x {sides[1]}, so a rank above {min(sides)} adds "
                f"nothing there: use at most {min(sides)}, or leave it out with --targets."
            )


def check_options(options: RankOptions, ranks: list[int]) -> None:
    """Whether these are options that a pruner of an adapter with these ranks can have.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    lowest = min(ranks, default=0)
    if not ranks:
        raise InputError("the model has no LoRA layer: add one with get_peft_model first.")
    if not 1 <= options.rank <= lowest:
        raise InputError(f"--rank is {options.rank}: give a rank from 1 to the adapter's {lowest} (--init-rank).")
    all_faults(options.faults())
    criterion = RANK_CRITERIA[options.criterion]
    if options.recovery == "newton+compensate" and criterion.curvature == "activations":
        raise InputError(
            f"--recovery {options.recovery} with --criterion {options.criterion}: a Newton step goes by the gradients' "
            "curvature and this cut by the activations', and one update cannot follow both: use --recovery compensate."
        )
    if options.basis != "given" and criterion.first_order:
        raise InputError(
            f"--basis {options.basis} with --criterion {options.criterion}: an average of |∂L/∂w · w| is known only "
            "for the components that it was taken of: use --basis given, or another criterion."
        )


def rank_schedule(options: RankOptions, init_rank: int, total_steps: int) -> Schedule:
    """When components go: between two steps of the schedule, or `k2` of them every `k1` steps.

    Raises:
        InputError: the run is too short; says how many steps it takes.
    """
    if options.k1 is None or options.k2 is None or init_rank == options.rank:  # nothing goes: any schedule does
        return make_schedule(options, total_steps)
    return make_stepwise(options.prune_start, options.k1, options.k2, init_rank - options.rank, total_steps)


def check_given_adapter(config: AdaptConfig) -> None:
    """Whether the rank of `--adapter` is one that can be pruned to `--rank`."""
    adapter = read_adapter(str(config.adapter))
    if adapter.patterned:
        raise InputError(
            f"--adapter {config.adapter} has other ranks in some layers (rank_pattern): start from one with "
            "equal ranks in all."
        )
    if adapter.rank < config.rank:
        raise InputError(
            f"--adapter {config.adapter} has rank {adapter.rank}, below --rank {config.rank}: it only falls."
        )
    if adapter.extras and config.adapter_for != "peft":
        raise InputError(
            f"--adapter {config.adapter} brings tensors that are no factors ({adapter.extras[0]}), and "
            f"{config.adapter_for} takes no such adapter: leave --adapter-for out, or pass --merge."
        )
    if any(APART.fullmatch(name) or STACKED.fullmatch(name) for name in adapter.shapes):
        raise InputError(
            f"--adapter {config.adapter}: LoRA on experts of a mixture, which the stock model holds in one tensor a "
            "layer, cannot be pruned by adapt: leave it out, or merge it into the model first (merge_and_unload)."
        )
    start = start_that_moves_base(lora_config_of(adapter))
    if start:
        raise InputError(
            f"--adapter {config.adapter} began with init_lora_weights={start!r}, which moved a part of the base "
            "weights into it: it fits no other copy of the model. Convert it first (save_pretrained with "
            "path_initial_model_for_weight_conversion), or train anew with --lora-init and --merge."
        )
