"""Everything about a pruning run that can be checked before weights are loaded or time is spent."""

from dataclasses import dataclass
from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from .budget import Budget, BudgetOptions, make_budget, shape_by_quota
from .compensation import check_compensation
from .config import PruneConfig
from .criteria import CRITERIA, Scoring
from .errors import InputError
from .experts import unstack_experts
from .families import family_of
from .job import Job, checkpoint_dtype, open_model, read_inputs
from .schedule import Schedule, make_schedule
from .stock import accepts, resized_config
from .units import family_for, find_units


@dataclass(frozen=True, eq=False)
class PruneJob(Job):
    """A pruning run whose inputs are known to be good."""

    config: PruneConfig
    schedule: Schedule
    budget: Budget


def prepare(config: PruneConfig) -> PruneJob:
    """Check a run's inputs, cheapest first, and read its data.

    Raises:
        InputError: anything about model, data, options or output that would make the run fail later.
    """
    CRITERIA[config.criterion].options(config.criterion, scoring_options(config))
    source, model_config = open_model(config)
    budget, dense_params = plan_budget(config, model_config)
    kept_bytes = (dense_params - budget.removed_params) * checkpoint_dtype(model_config).itemsize
    job = read_inputs(config, source, model_config, kept_bytes)
    schedule = make_schedule(config.schedule, config.prune_start, config.prune_end, config.frequency, job.total_steps)
    reason = budget.units.family.no_heads
    notes = (f"attention heads stay: {reason}",) if reason and config.attention == "auto" else ()
    return PruneJob(**{**vars(job), "notes": (*job.notes, *notes)}, schedule=schedule, budget=budget)


def scoring_options(config: PruneConfig) -> Scoring:
    """The part of the options that says how units are scored."""
    return Scoring(config.reduce, config.normalize, config.eta, config.score_linears, config.seed)


def budget_options(config: PruneConfig) -> BudgetOptions:
    """The part of the options that says what may go."""
    return BudgetOptions(
        config.sparsity,
        config.attention_sparsity,
        config.allocation,
        config.protect_first,
        config.protect_last,
        config.floor,
        config.round_to,
        config.across_layers,
    )


def plan_budget(config: PruneConfig, model_config: PreTrainedConfig) -> tuple[Budget, int]:
    """The budget, and the parameters of the dense model, from a model without weights."""
    if model_config.is_encoder_decoder:
        raise InputError(
            f"--model {config.model}: {model_config.model_type} is an encoder-decoder: secateur prunes causal language "
            "models (`secateur families`)."
        )
    if not config.family and type(model_config) not in AutoModelForCausalLM._model_mapping:
        family_of(model_config.model_type)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
    unstack_experts(empty)
    family = family_for(empty, model_config.model_type, config.family)
    units = find_units(empty, family, config.attention)
    check_compensation(config.compensate, units, {path: empty.get_submodule(path) for path in units.linears})
    legal = partial(accepts, model_config, family, model_class=config.model_class)
    budget = make_budget(units, budget_options(config), legal)
    if config.family and config.allocation == "uniform":
        _check_class(model_config, budget, config)
    return budget, sum(p.numel() for p in empty.parameters())


def _check_class(model_config: PreTrainedConfig, budget: Budget, config: PruneConfig) -> None:
    """Whether the stock class of a model type builds the sizes that its config is given, as the named family says.

    Raises:
        InputError: it builds others, so the result could not be written.
    """
    family = budget.units.family
    wanted = shape_by_quota(budget.units, budget.quota)
    with torch.device("meta"):
        small = AutoModelForCausalLM.from_config(
            resized_config(model_config, family, wanted, config.model_class), trust_remote_code=config.trust_remote_code
        )
    unstack_experts(small, family)
    try:
        found = find_units(small, family, "none").shapes[0]
    except InputError:
        found = None
    if found != wanted:
        raise InputError(
            f"--family {config.family}: with {wanted} in its config, a {model_config.model_type} is built as "
            f"{found or 'something else'}: use --attention none, or --allocation protected, which comes with a "
            "modelling file."
        )
