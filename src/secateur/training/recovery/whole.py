"""All of a run's ways to learn beyond one LoRA at one rate, made from its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from transformers import TrainerCallback

from ...architecture.units import Units
from ...config.prune import PruneConfig
from ...pruning.pruner import Pruner
from ...pruning.schedule import Schedule
from ..finetune import LORA_INITS
from .beside import Beside, BesideCallback
from .rates import Rates, lora_rates
from .restart import RestartCallback, columns_left, restart_steps


class Notes(Protocol):
    """What has something to say of a step."""

    def note(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Recovery:
    """What is trained beside LoRA, when LoRA begins anew, and at which rates all learn."""

    beside: Beside
    restarts: RestartCallback
    rates: Rates

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Trainer's, to come after the pruner's and before those that seal a checkpoint."""
        return [self.restarts, BesideCallback(self.beside)]

    def follow(self, pruner: Pruner) -> None:
        """From here on, know what its cuts leave."""
        if pruner.replaces:
            self.restarts.columns = lambda: columns_left(pruner.units, pruner.keep)

    def noting(self, *others: Notes) -> Callable[[], dict[str, Any]]:
        """What metrics.jsonl says of a step, of LoRA's new beginnings and of others' troubles."""
        return lambda: {key: value for each in (*others, self.restarts) for key, value in each.note().items()}

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, into a model that has its shapes."""
        self.beside.load(checkpoint)

    def record(self) -> dict[str, Any]:
        """What `result.json` says of it; empty where a run had none of it."""
        trained = {
            part: {"parameters": count, "lr": self.rates.peaks[part]} for part, count in self.beside.counts().items()
        }
        found = {"trained_also": trained, "lora_restarts": sorted(self.restarts.steps)}
        return {"recovery": {key: value for key, value in found.items() if value}} if any(found.values()) else {}


def make_recovery(
    model: PeftModel,
    config: PruneConfig,
    units: Units,
    schedule: Schedule,
    total_steps: int,
    told: Callable[[str], None],
) -> Recovery:
    """Make a model ready for what the options ask for; before the pruner looks at it.

    Args:
        units: of the model.
        total_steps: of the run.
        told: is told of LoRA's new beginnings, in words.
    """
    scoring = schedule.start if schedule.kind == "one-shot" else 0
    steps = restart_steps(config, schedule, total_steps)
    beside = Beside(model, units, config.also, restarts=bool(steps))
    rates = Rates(
        lora_rates(config, config.lr) | {part: config.also_rate(part, config.lr) for part in config.also},
        beside.kinds,
        after=config.rate_after(config.lr),
        since=schedule.last_cut - scoring,
        restarts=steps,
        end=total_steps - scoring,
    )
    return Recovery(beside, RestartCallback(steps, config.seed, LORA_INITS[config.lora_init], told), rates)
