"""Everything about a pruning run that can be checked before weights are loaded or time is spent."""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.building import check_read_elsewhere, empty_model
from ..architecture.discovery import check_text_model, find_units
from ..architecture.experts import ROUTING_BATCHES, check_expert_count, choosing_rule, unstack_experts
from ..architecture.families import FAMILIES, Family, check_not_refused, family_of
from ..architecture.layout import own_name
from ..architecture.likeness import check_same, family_for, is_tested
from ..architecture.nested import whole_type
from ..architecture.stock import accepts, has_class
from ..architecture.units import Units
from ..checkpoint.dry import check_export
from ..checkpoint.own_code import check_own_code
from ..config.options import flag, part_of
from ..config.prune import PruneConfig
from ..config.pruning import ScoringOptions
from ..config.run import load_in_words
from ..criteria import CRITERIA
from ..criteria.masks import NO_SCALED_MASKS, NO_SEARCHED_MASKS
from ..models.adapter import lora_config_of, read_adapter, start_that_moves_base, starting_from_adapter
from ..models.benchmark import parameter_count
from ..models.coverage import check_coverage, planned_lora, unreached_words, weight_sizes
from ..models.devices import device_of
from ..models.original import check_blocks
from ..models.stored import checkpoint_dtype
from ..pruning.allocation import make_budget
from ..pruning.allocation.reach import Unreachable
from ..pruning.allocation.target import Target, in_words_of, resolve_target, resolve_time, time_words
from ..pruning.budget import Budget, budget_goal
from ..pruning.compensation.single import refit_that_fits
from ..pruning.schedule import Schedule, make_schedule
from ..speed import Costs
from ..speed.costs import PARAMETERS
from ..speed.find import COSTS, costs_of
from ..system.errors import InputError, all_faults
from ..system.launcher import launched
from .checkpoints import work_folder
from .finetune import lora_config
from .flops import ModelSizes, model_sizes
from .job import Job, check_lengths, open_model, read_inputs
from .recovery.beside import check_parts
from .recovery.restart import restart_steps

IDLE = {
    "lr", "lr_warmup", "lr_decay", "epochs", "prune_start", "prune_end",
    "frequency", "ema", "on_nan", "lora_plus", "lr_after",
}  # fmt: skip
"""Options that matter to training alone."""


@dataclass(frozen=True, eq=False)
class PruneJob(Job):
    """A pruning run whose inputs are known to be good."""

    config: PruneConfig
    schedule: Schedule
    budget: Budget
    target: Target
    experts_by: str = "reap"
    """How experts that go are chosen (`--experts-by`, or what goes in its place)."""

    @property
    def family(self) -> Family:
        """The model's layout."""
        return self.budget.units.family

    @property
    def costs(self) -> Costs | None:
        """The times that the budget is of, where one was asked for."""
        return self.budget.account if isinstance(self.budget.account, Costs) else None

    @property
    def records(self) -> dict[str, Any]:
        return {COSTS: self.costs.table.record()} if self.costs else {}

    @property
    def scoring_steps(self) -> int:
        """Steps that score and make no update, before those that train."""
        before = self.config.untrained or self.schedule.kind == "one-shot"
        return self.schedule.last_cut if before else 0

    @property
    def scoring_batches(self) -> int:
        """Batches that each cut without training looks at."""
        return self.scoring_steps // (self.config.cuts or 1)


@dataclass(frozen=True, eq=False)
class PlannedBudget:
    """What a run's target means for its model."""

    config: PruneConfig
    budget: Budget
    target: Target
    dense_params: int
    """Of the whole model, tied weights once."""
    sizes: ModelSizes
    unreached: str | None = None
    """Which part of the parameters LoRA does not reach."""
    note: str | None = None
    """How the cost table was come by, where a time is asked for."""
    no_refit: str | None = None
    """Why there is none, where one is usual."""

    @property
    def params(self) -> int:
        """Of the whole pruned model (global allocation: to within a unit)."""
        return self.dense_params - self.budget.removed_params


def prepare(config: PruneConfig, *, encoder_decoders: bool = True) -> PruneJob:
    """Check a run's inputs, cheapest first, and read its data.

    Args:
        encoder_decoders: whether these are taken, too.
    Raises:
        InputError: anything about model, data, options or output that would make the run fail later.
    """
    criterion = CRITERIA[config.criterion]
    criterion.options(config.criterion, part_of(ScoringOptions, config))
    if config.allocation == "search" and criterion.masks is not None:
        raise InputError(NO_SEARCHED_MASKS.format(criterion=config.criterion))
    if config.dtype == "float16" and criterion.masks is not None:
        raise InputError(f"--dtype float16: {NO_SCALED_MASKS.format(criterion=config.criterion)}")
    config = starting_from_adapter(config)
    source, model_config = open_model(config, encoder_decoders=encoder_decoders)
    planned = plan_budget(config, model_config)
    config = planned.config
    kept_bytes = planned.params * checkpoint_dtype(model_config).itemsize
    job = read_inputs(config, source, model_config, kept_bytes)
    if config.untrained:
        batches = len(job.blocks) // (config.batch_size * launched())
        job = replace(job, total_steps=config.scoring_steps(launched(), batches))
    schedule = make_schedule(config, job.total_steps)
    restart_steps(config, schedule, job.total_steps)
    rule = config.experts_by, "experts_by" in config.given
    seen = min(job.total_steps, ROUTING_BATCHES) * job.tokens_per_step
    experts_by, instead = choosing_rule(model_config, planned.budget.units.family, config.experts, *rule, seen)
    reason = planned.budget.units.family.no_heads or planned.budget.heads_stay
    about_heads = config.attention != "none" and not config.takes_whole
    notes = [f"attention heads stay: {reason}"] if reason and about_heads else []
    notes += [what_stays(planned.budget.units)] if planned.budget.units.family.recurrent else []
    held = (load_in_words(config.load_in, cuts=True),) if config.load_in else ()
    of_plan = tuple(filter(None, (planned.unreached, planned.note, planned.no_refit)))
    job_values = {**vars(job), "notes": (*job.notes, *notes, *of_plan, *held, *instead, *_idle_options(config))}
    return PruneJob(
        **job_values, schedule=schedule, budget=planned.budget, target=planned.target, experts_by=experts_by
    )


def what_stays(units: Units) -> str:
    """Which part of a hybrid stays as it is, and how many of its layers have heads."""
    layers = sum(shape.heads > 0 for shape in units.shapes)
    have = "have attention" if units.family.shared is None else "have a block of attention and FFN, which others share"
    return f"{units.family.recurrent} stay as they are: {layers} of {len(units.shapes)} layers {have}"


def _idle_options(config: PruneConfig) -> list[str]:
    """That options which were given change nothing without training, if so."""
    given = set(config.given) - set(getattr(config, "origins", ()))
    idle = sorted(flag(name) for name in given & IDLE)
    return [f"without training these change nothing: {', '.join(idle)}"] if config.untrained and idle else []


def _check_start(config: PruneConfig) -> None:
    """Refuse an adapter whose start moves the base weights, where those are read anew.

    Raises:
        InputError: names the start.
    """
    if not config.adapter or not (config.load_in or config.stream_export):
        return
    if start := start_that_moves_base(lora_config_of(read_adapter(config.adapter))):
        why = f"--load-in {config.load_in}" if config.load_in else "--stream-export"
        raise InputError(
            f"--adapter {config.adapter} began with init_lora_weights={start!r}, which moves a part of the base "
            f"weights into it, and {why} reads these anew: leave {why.split()[0]} out."
        )


def _check_pairs(config: PruneConfig, model_config: PreTrainedConfig) -> None:
    """Refuse what an encoder-decoder cannot be asked for, and of a causal model what only such a one can.

    Raises:
        InputError: names the option and the reason.
    """
    kind = model_config.model_type
    if not model_config.is_encoder_decoder:
        if config.target_seq_len is not None:
            given = f"--target-seq-len {config.target_seq_len}"
            raise InputError(f"{given}: {kind} is no encoder-decoder, so it has no targets: leave it out.")
        return
    named, known = config.family or kind, [name for name, family in FAMILIES.items() if family.encoder_decoder]
    if named not in known:
        check_not_refused(named)
        given = f"--family {named}" if config.family else f"--model {config.model}"
        raise InputError(f"{given}: {kind} is an encoder-decoder; layouts of such are known of {', '.join(known)}.")
    reasons = {
        "--packing separate": config.packing != "joined" and "pairs are padded and never packed",
        f"--bos {config.bos}": config.bos != "auto" and "a source begins as the tokenizer has it",
        "--system-prompt": config.system_prompt is not None and "its sources have no roles",
        f"--load-in {config.load_in}": config.load_in and "transformers leaves parts of such models in float32 then",
        "--stream-export": config.stream_export and "its embeddings are tied in more ways than files are read by",
    }
    faults = {what: why for what, why in reasons.items() if why}
    all_faults([f"{what}: {kind} is an encoder-decoder, and {why}: leave it out." for what, why in faults.items()])
    if checkpoint_dtype(model_config) == torch.float16:
        raise InputError(
            f"--model {config.model}: its weights are float16, of which transformers reads a part of a {kind} in "
            "float32, so the result would not be what is written: save it in bfloat16 or float32 first."
        )


def plan_budget(config: PruneConfig, model_config: PreTrainedConfig) -> PlannedBudget:
    """What the target means for a model, from the model without weights.

    Raises:
        InputError: it cannot be reached, with the nearest that can; a model of another kind or layout.
    """
    criterion = CRITERIA[config.criterion]
    criterion.check_units(config.criterion, config.kinds)
    _check_pairs(config, model_config)
    if config.family is None:
        check_not_refused(str(model_config.model_type))
    if config.extract_text and not whole_type(model_config):
        raise InputError(f"--extract-text: {config.model} is a text model already: leave it out.")
    check_text_model(model_config)
    check_lengths(config, model_config)
    _check_start(config)
    if not config.family and not has_class(model_config):
        family_of(model_config.model_type)
    empty = empty_model(model_config, trust_remote_code=config.trust_remote_code)
    check_blocks(empty, config.load_in, device_of(config))
    family = family_for(empty, model_config.model_type, config.family)
    if config.trust_remote_code:
        check_own_code(model_config, family, config.model_class)
    unstack_experts(empty, family)
    if config.stream_export and family.experts is not None:
        raise InputError(
            f"--stream-export: a {model_config.model_type} is a mixture, whose files hold a layer's experts in "
            "one tensor, which is not read an expert at a time: leave --stream-export out."
        )
    if config.experts is not None:
        check_expert_count(model_config, family, config.experts)
    units = find_units(empty, family, config.attention, config.kinds)
    if criterion.masks is not None:
        criterion.masks.check_places(config.criterion, units)
    modules = {path: empty.get_submodule(path) for path in units.linears}
    config, no_refit = refit_that_fits(config, units, modules, tested=is_tested(model_config, config.family))
    check_parts(empty, units, config.also)
    sizes = parameter_count(empty), units.prunable_params, checkpoint_dtype(model_config).itemsize
    began = work_folder(Path(config.output)) / COSTS if config.resume and config.output else None
    costs, note = costs_of(config, model_config, units, began) if config.by_time else (None, None)
    target = resolve_time(config, costs) if costs else resolve_target(config, *sizes)
    legal = cache(partial(accepts, model_config, family, model_class=config.model_class))  # layers are mostly alike
    goal = budget_goal(config, target.sparsity, criterion.across_layers)
    try:
        budget = make_budget(units, goal, legal, costs or PARAMETERS)
    except Unreachable as error:
        raise (time_words(target, error, costs) if costs else in_words_of(target, error, *sizes)) from None
    if has_class(model_config):
        check_read_elsewhere(model_config)
        check_export(empty, units, budget.example(), config.model_class)
    if not is_tested(model_config, config.family):
        check_same(model_config, units, budget.example())
    measured = model_sizes(empty, units)
    return PlannedBudget(config, budget, target, sizes[0], measured, _check_lora(empty, config, units), note, no_refit)


def _check_lora(empty: PreTrainedModel, config: PruneConfig, units: Units) -> str | None:
    """Whether LoRA can go where the run needs it, and which part it does not reach; uses `empty` up.

    Raises:
        InputError: see `planned_lora` and `check_coverage`.
    """
    weights, parameters = weight_sizes(empty), parameter_count(empty)
    covered = planned_lora(empty, config, lora_config(config, lora_names(units.family)))
    if "lora_grad" in CRITERIA[config.criterion].needs:
        check_coverage(units.linears, covered)
    gates = {gate.linear for pool in units.pools for gate in pool.gates}
    if "gains" in config.also and config.load_in and (bare := sorted(gates - set(covered))):
        raise InputError(
            f"--train-also gains: {bare[0]} has no LoRA, and --load-in {config.load_in} puts another module "
            "in its place: leave --targets out."
        )
    return None if config.targets else unreached_words(weights, covered, parameters)


def lora_names(family: Family) -> list[str]:
    """Names of the linears that get LoRA unless `--targets` says otherwise: every linear of every unit."""
    return [own_name(path) for path in family.linears]
