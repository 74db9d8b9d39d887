"""A run as experiment trackers are told of it (`--report-to`), each through its own package.

Trainer's callbacks for them know neither the run's options nor what is measured before and after the training, and
begin another run on `--resume`.
"""

import json
import os
import secrets
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..config.files.rerun import rerun_text
from ..evaluation.perplexity import Perplexity
from ..system.errors import InputError
from ..system.launcher import rank
from ..system.progress import Progress
from ..system.reading import PARSER_ERRORS
from ..system.records import plain, write_json
from ..training.checkpoints import step_of
from ..training.job import Job
from ..training.prepare import PruneJob
from ..training.recording import Watched

TRACKERS = "trackers.json"
"""In the run's folder: tracker -> what it calls the run."""
NAMES = {"eval_perplexity": "eval/perplexity"}
"""Name in metrics.jsonl -> what trackers call it, where that is not `train/` and the name."""
PROJECT = "secateur"
"""What the runs stand under, where the tracker's own variable does not say another name."""
HINTS = {
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "see that MLFLOW_TRACKING_URI names a store that can be reached",
    "trackio": "see that TRACKIO_DIR can be written to",
    "tensorboard": "see that the output's folder can be written to",
}


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a run when it begins."""

    name: str
    folder: Path
    options: dict[str, Any]
    text: str
    """The options as run.yaml."""
    known: str | None
    """What the tracker called the run, where it goes on with one."""
    step: int
    """The last that stays as it was said."""


@dataclass(frozen=True)
class Tracker:
    """A run at one tracker."""

    known: str
    """What the tracker calls it."""
    where: str
    """Where to look, for people."""
    log: Callable[[dict[str, float], int], object]
    finish: Callable[[bool], object]
    """Ends the run; the argument: whether all went well."""


def tensorboard(run: Told) -> Tracker:
    """Files in the run's folder; steps that are done again replace what they said before."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "runs"
    made: list[Any] = []

    def log(values: dict[str, float], step: int) -> None:
        if not made:  # only now, as the run's folder is emptied before a run that does not go on
            made.append(SummaryWriter(str(folder), purge_step=run.step + 1 if run.known else None))
            if run.known is None:
                made[0].add_text("options", f"```yaml\n{run.text}```", 0)
        for name, value in values.items():
            made[0].add_scalar(name, value, step)
        made[0].flush()

    def finish(good: bool) -> None:
        for writer in made:
            writer.close()

    return Tracker(folder.name, f"in {folder}", log, finish)


def wandb(run: Told) -> Tracker:
    """Weights & Biases; a run that the caller has begun is used, and left open."""
    import wandb

    own = wandb.run is None
    begun: Any = wandb.run or wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", run.name),
        id=run.known or os.environ.get("WANDB_RUN_ID"),
        resume="allow",
        settings=wandb.Settings(console="off"),  # the live line is no log
    )
    begun.config.update(run.options, allow_val_change=True)
    begun.define_metric("*", step_metric="step")  # its own count of steps never goes back, as a resumed run does

    def log(values: dict[str, float], step: int) -> None:
        begun.log({"step": step, **values})

    def finish(good: bool) -> None:
        if own:
            begun.finish(exit_code=0 if good else 1)

    where = f"in {Path(begun.dir).parent}" if begun.offline else f"at {begun.url}"
    return Tracker(begun.id, where, log, finish)


def mlflow(run: Told) -> Tracker:
    """MLflow; a run that the caller has begun is used, and left open."""
    import mlflow
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

    begun = mlflow.active_run()
    if own := begun is None:
        if run.known is None and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        begun = mlflow.start_run(run_id=run.known, run_name=run.name)
    known = begun.info.run_id
    options = [(name, str(value)[:MAX_PARAM_VAL_LENGTH]) for name, value in run.options.items()]
    for first in range(0, len(options) if run.known is None else 0, MAX_PARAMS_TAGS_PER_BATCH):
        mlflow.log_params(dict(options[first : first + MAX_PARAMS_TAGS_PER_BATCH]), run_id=known)

    def log(values: dict[str, float], step: int) -> None:
        mlflow.log_metrics(values, step=step, run_id=known, synchronous=False)

    def finish(good: bool) -> None:
        mlflow.flush_async_logging()
        if own:
            mlflow.end_run("FINISHED" if good else "FAILED")

    return Tracker(known, f"run {known} in {mlflow.get_tracking_uri()}", log, finish)


def trackio(run: Told) -> Tracker:
    """Trackio, which knows runs by their names; what it prints would stand among what a command prints."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    name = run.known or f"{run.name}-{secrets.token_hex(3)}"
    with redirect_stdout(StringIO()):
        begun = trackio.init(project, name, config=run.options, resume="allow" if run.known else "never", embed=False)

    def finish(good: bool) -> None:
        with redirect_stdout(StringIO()):
            trackio.finish()

    where = f"as {name}: trackio show --project {project}"
    return Tracker(name, where, lambda values, step: begun.log(values, step=step), finish)


OPENED_BY = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}


class Tracking:
    """The trackers of a run, which listen within this context; outside it, and in other processes, none does."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job = job
        self.progress = progress
        self.before: Perplexity | None = None
        """Of the model that the run begins with."""
        self._open: dict[str, Tracker] = {}
        self._remembered = False
        self._watched: Watched | None = None
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Begin at every tracker, or go on.

        Raises:
            InputError: one of them cannot be begun.
        """
        for name in self.job.config.report_to if rank() == 0 else ():
            try:
                self._open[name] = OPENED_BY[name](self._told(name))
            except Exception as error:  # each of them has errors of its own
                self._finish(good=False)
                raise InputError(f"--report-to {name}: it cannot begin ({_words(error)}): {HINTS[name]}.") from error
            self.progress.message(f"{name}: {self._open[name].where}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(good=kind is None)

    def begin(self, watched: Watched) -> None:
        """Say how the model stands before the first step."""
        self._watched = watched
        if self.job.checkpoint is not None:  # it has been said
            self._facts = watched.facts()
            return
        values = {"eval/perplexity": self.before.perplexity} if self.before else {}
        self._log(values | self._sizes(), watched.steps_done())

    def step(self, line: dict[str, Any]) -> None:
        """Say a line of metrics.jsonl, and the layers' sizes where they are others now."""
        values = {NAMES.get(name, f"train/{name}"): value for name, value in line.items() if name != "step"}
        self._log(values | self._sizes(), line["step"])

    def end(self, result: dict[str, Any]) -> None:
        """Say what result.json holds of the written result."""
        figures = result.get("pruned") or result["adapted"] | result["adapter"]
        values = {f"result/{name}": figures[name] for name in ("parameters", "bytes", "mean_rank") if name in figures}
        if figures["perplexity"]:
            values |= {"result/perplexity": figures["perplexity"]["perplexity"]}
        if "sparsity" in result:
            values["result/sparsity"] = result["sparsity"]["reached"]
        if "zeros" in result:
            values["result/zeros"] = result["zeros"]["share"]
        self._log(values | self._sizes(), self.job.total_steps)

    def _sizes(self) -> dict[str, Any]:
        """Units or ranks of every layer, unless they are as they were."""
        if not self._open or self._watched is None or self._facts == (facts := self._watched.facts()):
            return {}
        self._facts = facts
        return self._watched.sizes()

    def _told(self, name: str) -> Told:
        config = self.job.config
        command = type(config).__name__.removesuffix("Config").lower()
        last = self.job.checkpoint
        known, step = (None, 0) if last is None else (self._known().get(name), step_of(last))
        step += self.job.scoring_steps if isinstance(self.job, PruneJob) else 0
        text = rerun_text(command, config)
        return Told(self.job.output.name, self.job.work, plain(asdict(config)), text, known, step)

    def _known(self) -> dict[str, str]:
        """What trackers called the run that goes on."""
        try:
            return dict(json.loads((self.job.work / TRACKERS).read_text(encoding="utf-8")))
        except (OSError, *PARSER_ERRORS):
            return {}

    def _log(self, values: dict[str, Any], step: int) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        if self._open and not self._remembered:
            write_json(self.job.work / TRACKERS, {name: tracker.known for name, tracker in self._open.items()})
            self._remembered = True
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(numbers, step)
            except Exception as error:  # a tracker's trouble is no reason to stop training
                del self._open[name]
                self.progress.message(f"warning: {name} is told no more, as it fails ({_words(error)})")

    def _finish(self, good: bool) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.finish(good)
            except Exception as error:
                self.progress.message(f"warning: {name} could not end the run ({_words(error)})")
        self._open = {}


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
