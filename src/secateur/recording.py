"""Trainer events to the records: metrics.jsonl and the live line."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .distributed import rank
from .evaluate import Perplexity
from .job import Job
from .progress import Progress
from .pruner import Cut, Pruner
from .records import MetricsLog


class RecordingCallback(TrainerCallback):
    """Writes a line per optimiser step and shows it.

    Args:
        evaluate: perplexity on the evaluation text now, or None without one.
        dense_parameters: parameters of the model before pruning, without LoRA.
    """

    def __init__(
        self,
        pruner: Pruner,
        job: Job,
        progress: Progress,
        evaluate: Callable[[], Perplexity | None],
        *,
        dense_parameters: int,
    ) -> None:
        self.pruner = pruner
        self.job = job
        self.progress = progress
        self.evaluate = evaluate
        self.dense_parameters = dense_parameters
        place = job.work / "metrics.jsonl" if rank() == 0 else Path(os.devnull)
        self.log = MetricsLog(place, last_step=pruner.steps_done)
        self._step_started = self._last = time.perf_counter()
        self._seconds_per_step = 0.0

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
        loss, step = logs["loss"], self.pruner.steps_done  # scoring steps before training count
        seconds = time.perf_counter() - self._step_started
        self._seconds_per_step = 0.8 * self._seconds_per_step + 0.2 * seconds if self._seconds_per_step else seconds
        line: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "sparsity": self.pruner.sparsity,
            "parameters": self.dense_parameters - self.pruner.removed_params,
            "seconds": seconds,
            "tokens_per_s": self.job.tokens_per_step / seconds,
        }
        every = self.job.config.eval_steps
        if every and step % every == 0 and (measured := self.evaluate()) is not None:
            line["eval_perplexity"] = measured.perplexity
            self.progress.event(f"step {step}: perplexity {measured.perplexity:.2f} on {self.job.config.eval_data}")
        self.log.append(line)
        self.progress.update(
            step,
            loss=loss,
            lr=line["learning_rate"],
            sparsity=line["sparsity"],
            target=self.pruner.budget.sparsity,
            parameters=line["parameters"],
            tokens_per_s=line["tokens_per_s"],
            seconds_left=self._seconds_per_step * (state.max_steps - state.global_step),
        )

    def on_cut(self, cut: Cut) -> None:
        """Show what a cut removed."""
        counts: dict[str, int] = {}
        for name, units in cut.removed.items():
            kind = name.rsplit(".", 1)[-1]
            counts[kind] = counts.get(kind, 0) + len(units)
        if not counts:
            return
        words = ", ".join(f"{count:,} {WORDS[kind]}" for kind, count in counts.items())
        self.progress.event(f"cut after step {cut.step}: {words} gone, sparsity now {cut.sparsity:.1%}")

    def close(self) -> None:
        self.log.close()


WORDS = {"ffn": "FFN channels", "kv_group": "KV groups", "query_head": "query heads"}
