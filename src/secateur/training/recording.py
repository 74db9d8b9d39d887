"""Trainer events to the records: metrics.jsonl and the live line."""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evaluation.perplexity import Perplexity
from ..pruning.cut import Cut
from ..pruning.pruner import Pruner
from ..pruning.schedule import cuts_after
from ..ranks import RankCut, RankPruner
from ..system.launcher import rank
from ..system.progress import Progress, human_count
from ..system.records import MetricsLog
from .job import Job


class Watched(Protocol):
    """What a run says of its pruner at each step."""

    def steps_done(self) -> int:
        """Optimiser steps, and scoring steps before training."""

    def facts(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of how much has gone."""

    def words(self) -> str:
        """The same for the live line."""

    def cuts_left(self) -> int:
        """Cuts that are still to come."""

    def sizes(self) -> dict[str, float]:
        """How much every layer has, for trackers."""


@dataclass(frozen=True)
class WatchedUnits:
    """A `Pruner`: sparsity and parameters."""

    pruner: Pruner
    dense_parameters: int
    """Parameters of the model before pruning, without LoRA."""
    ranks: RankPruner | None = None
    """Of `--init-rank`."""

    def steps_done(self) -> int:
        return self.pruner.steps_done

    def facts(self) -> dict[str, Any]:
        return {
            "sparsity": self.pruner.sparsity,
            "parameters": self.dense_parameters - self.pruner.removed_params,
        }

    def words(self) -> str:
        facts = self.facts()
        target = self.pruner.budget.sparsity
        return f"sparsity {facts['sparsity']:.1%} of {target:.1%}  {human_count(facts['parameters'])} params"

    def cuts_left(self) -> int:
        return cuts_after(self.pruner.schedule, self.pruner.steps_done)

    def sizes(self) -> dict[str, float]:
        units: dict[str, float] = {f"units/{name}": int(kept.sum()) for name, kept in self.pruner.keep.items()}
        return units | (WatchedRanks(self.ranks).sizes() if self.ranks is not None else {})


@dataclass(frozen=True)
class WatchedRanks:
    """A `RankPruner`: the mean rank and the adapter's parameters."""

    pruner: RankPruner

    def steps_done(self) -> int:
        return self.pruner.steps_done

    def facts(self) -> dict[str, Any]:
        ranks = self.pruner.ranks.values()
        return {"rank": sum(ranks) / len(ranks), "adapter_parameters": self.pruner.adapter_parameters}

    def words(self) -> str:
        facts = self.facts()
        return f"rank {facts['rank']:.1f} of {self.pruner.rank}  {human_count(facts['adapter_parameters'])} params"

    def cuts_left(self) -> int:
        return cuts_after(self.pruner.schedule, self.pruner.steps_done)

    def sizes(self) -> dict[str, float]:
        return {f"rank/{layer}": rank for layer, rank in self.pruner.ranks.items()}


class TimeLeft:
    """Seconds to the end of training: steps take what they usually do, cuts what the last one took beside.

    Args:
        cuts: that are to come.
    """

    RECENT = 20

    def __init__(self, cuts: int) -> None:
        self._recent: deque[float] = deque(maxlen=self.RECENT)
        self._cuts, self._of_a_cut = cuts, 0.0

    def __call__(self, seconds: float, steps: int, cuts: int) -> float:
        """After a step.

        Args:
            seconds: that it took.
            steps, cuts: that are to come.
        """
        cut, self._cuts = cuts < self._cuts, cuts
        if not cut or not self._recent:
            self._recent.append(seconds)
        usual = statistics.median(self._recent)
        if cut:
            self._of_a_cut = max(seconds - usual, 0.0)
        return usual * steps + self._of_a_cut * cuts


class RecordingCallback(TrainerCallback):
    """Writes a line per optimiser step and shows it.

    Args:
        evaluate: perplexity on the evaluation text now, or None without one.
        troubles: what the guards have to say of the step.
        tell: gets every line, too.
    """

    def __init__(
        self,
        watched: Watched,
        job: Job,
        progress: Progress,
        evaluate: Callable[[], Perplexity | None],
        troubles: Callable[[], dict[str, Any]] = dict,
        tell: Callable[[dict[str, Any]], object] = dict,
    ) -> None:
        self.watched = watched
        self.job = job
        self.progress = progress
        self.evaluate = evaluate
        self.troubles = troubles
        self.tell = tell
        place = job.work / "metrics.jsonl" if rank() == 0 else Path(os.devnull)
        self.log = MetricsLog(place, last_step=watched.steps_done())
        self._step_started = self._last = time.perf_counter()
        self._left = TimeLeft(watched.cuts_left())
        progress.begin(watched.steps_done())  # Trainer takes its time before the first step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        loss, step, grad_norm = logs["loss"], self.watched.steps_done(), logs.get("grad_norm")
        seconds = time.perf_counter() - self._step_started
        line: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "learning_rate": logs["learning_rate"],
            "grad_norm": grad_norm,
            **self.watched.facts(),
            "seconds": seconds,
            "tokens_per_s": self.job.tokens_per_step / seconds,
            **self.troubles(),
        }
        if grad_norm is not None and not math.isfinite(grad_norm):
            line["left_out"] = True  # the update changed nothing (see `NumericsGuard`)
        every = self.job.config.eval_steps
        if every and step % every == 0 and (measured := self.evaluate()) is not None:
            line["eval_perplexity"] = measured.perplexity
            self.progress.message(f"step {step}: perplexity {measured.perplexity:.2f} on {self.job.eval_info['data']}")
        self.log.append(line)
        self.tell(line)
        self.progress.update(
            step,
            loss=loss,
            lr=line["learning_rate"],
            state=self.watched.words(),
            tokens_per_s=line["tokens_per_s"],
            seconds_left=self._left(seconds, state.max_steps - state.global_step, self.watched.cuts_left()),
        )

    def close(self) -> None:
        self.log.close()


def cut_words(cut: Cut) -> str | None:
    """What a cut of units removed; None when it removed nothing."""
    counts: dict[str, int] = {}
    for name, units in cut.removed.items():
        kind = name.rsplit(".", 1)[-1]
        counts[kind] = counts.get(kind, 0) + len(units)
    if not counts:
        return None
    words = ", ".join(f"{count:,} {WORDS[kind]}" for kind, count in counts.items())
    return f"cut after step {cut.step}: {words} gone, sparsity now {cut.sparsity:.1%}"


def rank_cut_words(cut: RankCut) -> str | None:
    """What a cut of rank components removed; None when it removed nothing."""
    gone, ranks = sum(cut.removed.values()), list(cut.ranks.values())
    if not gone:
        return None
    return f"cut after step {cut.step}: {gone:,} rank components gone, rank now {sum(ranks) / len(ranks):.1f}"


WORDS = {
    "ffn": "FFN channels", "kv_group": "KV groups", "query_head": "query heads", "layer": "layers",
    "attention_block": "attention blocks", "ffn_block": "FFN blocks",
}  # fmt: skip
