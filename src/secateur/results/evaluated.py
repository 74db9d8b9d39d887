"""What `eval` came to."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..evaluation.perplexity import Paired
from ..report.runs import at, items, number, rows, text
from ..system.errors import InputError
from ..system.registry import did_you_mean
from ..system.voice import speaks_python
from . import shown
from .records import DAMAGED, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskScore:
    """A task's figure."""

    metric: str
    value: float
    """Between 0 and 1."""
    stderr: float | None
    """Standard error of `value`, over rows."""
    rows: int
    num_fewshot: int
    """Examples in each prompt."""


@dataclass(frozen=True)
class ModelFigures:
    """What was measured of one model. What was not is None."""

    parameters: int | None
    perplexity: float | None
    perplexity_stderr: float | None
    """Standard error of `perplexity`, from the spread between segments."""
    tokens_scored: int | None
    seq_len: int | None
    """Tokens of a segment."""
    dtype: str | None
    """Of the computation."""
    nats_per_byte: float | None
    """Where the two models' tokens are not the same."""
    tasks: dict[str, TaskScore]
    seven_task_average: float | None
    """The mean that the pruning papers give, where all of its tasks were run."""


@dataclass(frozen=True, repr=False)
class EvalResult:
    """What `eval` found, told by its record."""

    models: dict[str, ModelFigures]
    """Name, as it was given -> its figures; `model` first, then `against`."""
    paired: Paired | None
    """First model less the second, segment by segment."""
    warnings: tuple[str, ...]
    """What makes the figures less than they seem."""
    record: dict[str, Any]
    """The whole of what `output` holds."""

    @property
    def perplexity(self) -> float | None:
        """Of the first model."""
        return next(iter(self.models.values())).perplexity

    @property
    def tasks(self) -> dict[str, TaskScore]:
        """Of the first model."""
        return next(iter(self.models.values())).tasks

    def __repr__(self) -> str:
        parts = []
        for name, found in self.models.items():
            figures = [f"perplexity {found.perplexity:.2f}"] if found.perplexity is not None else []
            figures += [f"{task} {100 * score.value:.1f} %" for task, score in found.tasks.items()]
            parts.append(f"{name}: {', '.join(figures) or 'nothing measured'}")
        return f"EvalResult({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        lines = [
            (label, *(f"{100 * each[1]:.1f} %" if share else f"{each[1]:.2f}" for each in found))
            for label, found, share in self._bars()
            if len(found) == len(self.models)
        ]
        sizes = [found.parameters for found in self.models.values()]
        if all(size is not None for size in sizes):
            lines.insert(0, ("Parameters", *(f"{size:,}" for size in sizes)))
        said = "; ".join([*([self.paired.verdict] if self.paired else []), *self.warnings])
        return shown.table(said or "Evaluation", ("", *self.models), lines)

    def _bars(self) -> list[tuple[str, list[tuple[str, float, float | None]], bool]]:
        """(label, (model, value, standard error) of those that have it, whether it is a share) of each measure."""
        name = text(self.record, "data", "text") or PurePath(text(self.record, "data", "data") or "text").name
        found: list[tuple[str, list[tuple[str, float, float | None]], bool]] = []
        known = [(n, m.perplexity, m.perplexity_stderr) for n, m in self.models.items() if m.perplexity is not None]
        if known:
            found.append((f"Perplexity, {name}", known, False))
        for task in dict.fromkeys(task for figures in self.models.values() for task in figures.tasks):
            scores = [(n, m.tasks[task]) for n, m in self.models.items() if task in m.tasks]
            label = f"{task}, {scores[0][1].metric}"
            found.append((label, [(n, score.value, score.stderr) for n, score in scores], True))
        return found

    @speaks_python()
    def plot(self) -> "Figure":
        """A bar of each model with its standard error, a panel for each measure, as a matplotlib figure.

        Raises:
            InputError: there is no matplotlib.
        """

        def draw(figure: "Figure") -> None:
            from ..report.overview import draw_figures

            draw_figures(self._bars(), figure)

        panels = max(1, len(self._bars()))
        return shown.drawn(draw, (9.0, 0.7 + (0.7 + 0.6 * len(self.models)) * panels))

    @speaks_python()
    def model(
        self, name: str | None = None, *, dtype: str = "checkpoint", trust_remote_code: bool = False
    ) -> "PreTrainedModel":
        """A model that was evaluated, in evaluation mode on the CPU.

        Args:
            name: as it was given to `eval`; by default the first one.
            dtype: checkpoint (as its files hold it), float32, bfloat16 or float16.
            trust_remote_code: allow code that came with the model.
        Raises:
            InputError: no such model was evaluated, or it is not there any more.
        """
        from .models import checkpoint_of

        return checkpoint_of(self._place(name), dtype=dtype, trust_remote_code=trust_remote_code)

    @speaks_python()
    def tokenizer(self, name: str | None = None) -> "PreTrainedTokenizerBase":
        """The tokenizer of such a model."""
        from .models import tokenizer_of

        return tokenizer_of(self._place(name))

    def _place(self, name: str | None) -> str:
        """Where a model lies: a name is a folder's where `eval` ran."""
        name = next(iter(self.models)) if name is None else name
        if name not in self.models:
            known = list(self.models)
            raise InputError(f"{name!r} was not evaluated. {did_you_mean(name, known)}Known: {', '.join(known)}.")
        return text(self.record, "folders", name) or name


def eval_result(record: dict[str, Any], place: str) -> EvalResult:
    """Out of what `eval` writes.

    Raises:
        InputError: it is damaged.
    """
    whole = Record(record, place)
    models = {name: _figures(Record(found, place)) for name, found in whole.mapping("models").items()
              if isinstance(found, dict)}  # fmt: skip
    if not models:
        raise InputError(f"{place} has no models: {DAMAGED}")
    difference, stderr = whole.number("paired", "mean_difference_nll"), whole.number("paired", "stderr_difference_nll")
    pairs = None
    if difference is not None and stderr is not None:
        pairs = Paired(difference, stderr, whole.whole("paired", "segments") or 0)
    return EvalResult(models, pairs, tuple(map(str, rows(record, "warnings"))), record)


def _figures(found: Record) -> ModelFigures:
    return ModelFigures(
        parameters=found.whole("parameters"),
        perplexity=found.number("perplexity"),
        perplexity_stderr=found.number("stderr"),
        tokens_scored=found.whole("tokens_scored"),
        seq_len=found.whole("seq_len"),
        dtype=found.text("dtype"),
        nats_per_byte=found.number("nats_per_byte"),
        tasks={
            name: TaskScore(
                text(task, "metric") or "",
                value,
                number(task, "stderr"),
                int(number(task, "rows") or 0),
                int(number(task, "num_fewshot") or 0),
            )
            for name, task in items(found.content, "tasks")
            if (value := number(at(task, "value"))) is not None
        },
        seven_task_average=found.number("seven_task_average", "value"),
    )
