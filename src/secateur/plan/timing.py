"""How long a run may take on this machine: its FLOPs over a measured speed. An estimate, not a promise."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ..architecture.units import Units
from ..config.pruning import SEARCH_EVALUATIONS, ScoringOptions
from ..config.speed import PlanConfig
from ..criteria import CRITERIA
from ..criteria.base import scored_members
from ..models.benchmark import matmul_flops_per_s
from ..models.devices import name_of
from ..pruning.budget import Budget
from ..pruning.compensation.cost import refit_flops
from ..pruning.schedule import make_schedule
from ..pruning.search.cost import ablation_flops, search_flops
from ..system.progress import phase
from ..system.records import counted
from ..training.flops import ModelSizes, Workload, run_flops, step_flops

TRAINING_EFFICIENCY = 0.6
"""Share of the speed of matrix products that a whole LoRA step with scoring reached, 2 x 256 tokens on one CPU core:
0.43 and 0.65 in bfloat16 (width 576 and 2,048), 0.74 in float32 (width 576); docs/log.md. No GPU was measured."""


@phase("measuring how fast this machine multiplies")
def time_record(
    config: PlanConfig,
    budget: Budget,
    sizes: ModelSizes,
    *,
    scoring: ScoringOptions,
    targets: list[str],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """FLOPs, speed (measured, or as `--device-tflops` says), and the seconds they are: first and last step, cut, run.

    Args:
        targets: names of the linears that have LoRA.
    Raises:
        InputError: `--steps` is given and the schedule does not fit it.
    """
    work = Workload(
        config.batch_size,
        config.seq_len,
        targets,
        scored=_scored(config, budget.units, scoring),
        teacher=config.distill > 0,
        checkpointing=config.gradient_checkpointing,
        weights="weights" in config.also,
        target_len=config.target_seq_len,
    )
    gone = units_gone(budget) if config.shrinks else {}
    first = step_flops(sizes, budget.units, {}, config.first_rank, work)
    last = step_flops(sizes, budget.units, gone, config.rank, work)
    flops = {"first_step": first.total, "last_step": last.total - last.scoring}
    flops |= _cut_flops(config, budget, sizes)
    if config.allocation == "search":
        flops["search"] = _search_flops(config, budget, sizes)
    steps = config.scoring_steps(config.devices) if config.untrained else config.steps
    if steps is not None:
        schedule = make_schedule(config, steps)
        cuts = flops.get("cut", 0.0) * len(schedule.cuts())  # a little less: later cuts are of a smaller model
        run = run_flops(first, last, schedule, steps, shrink=config.shrinks)
        flops["run"] = run + cuts + flops.get("search", 0.0)
    measured, speed = config.device_tflops is None, 1e12 * (config.device_tflops or 0)
    if measured:
        layer = list(sizes.linears.values())[: len(sizes.family.linears)]
        tokens = work.tokens // config.accumulation
        speed = matmul_flops_per_s(layer, tokens=tokens, dtype=dtype, device=device)
    return {
        "steps": steps,
        "trains": not config.untrained,
        "words": _length(config, steps),
        "device": device.type,
        "dtype": name_of(dtype),
        "matmul_flops_per_s": speed,
        "measured": measured,
        "training_efficiency": TRAINING_EFFICIENCY,
        "flops": flops,
        "flops_by_part": {"first_step": asdict(first), "last_step": asdict(replace(last, scoring=0.0))},
        "seconds": {name: count / (speed * TRAINING_EFFICIENCY) for name, count in flops.items()},
    }


def _cut_flops(config: PlanConfig, budget: Budget, sizes: ModelSizes) -> dict[str, float]:
    """Of what a cut looks at beside scores, if anything."""
    tokens = -(-config.calibration_tokens // config.devices)
    if config.compensate == "sequential":
        return {"cut": refit_flops(budget.units, sizes.head[1], tokens)}
    if "loss_without" in CRITERIA[config.criterion].needs:
        return {"cut": ablation_flops(budget.units, sizes.head, tokens)}
    return {}


def _search_flops(config: PlanConfig, budget: Budget, sizes: ModelSizes) -> float:
    """Of a search; of one that is bounded by time alone, as if it came as far as the default."""
    tokens, evaluations = -(-config.calibration_tokens // config.devices), config.search_evaluations
    return search_flops(budget.units, sizes.head, tokens, evaluations or SEARCH_EVALUATIONS)


def _length(config: PlanConfig, steps: int | None) -> str:
    if steps is None or not config.untrained:
        return f"{steps} steps"
    return f"{counted(config.cuts or 1, 'cut')}, {counted(steps, 'batch')}"


def units_gone(budget: Budget) -> Mapping[str, float]:
    """Pool name -> units that are gone at the end; on average over layers where they compete (global allocation)."""
    return {**budget.quota, **budget.expected_gone()}


def _scored(config: PlanConfig, units: Units, scoring: ScoringOptions) -> frozenset[str]:
    """Paths of the linears whose weights' gradients the criterion looks at."""
    criterion = CRITERIA[config.criterion]
    if not criterion.needs & {"weight_grad", "batch_weight_grad"}:
        return frozenset()
    chosen = criterion.options(config.criterion, scoring)
    return frozenset(member.linear for pool in units.pools for member in scored_members(pool, chosen))
