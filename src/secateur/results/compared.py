"""What `compare` came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.runs import items, number, rows, text
from ..system.errors import InputError
from ..system.progress import human_count, human_seconds
from ..system.registry import did_you_mean
from ..system.voice import speaks_python
from . import shown
from .records import DAMAGED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ComparedRun:
    """One cell of a comparison. What was not measured is None."""

    name: str
    kind: str
    """`prune`, or a baseline: `dense`, `dense+lora`."""
    status: str
    """`done`, or `failed: ` and the reason."""
    sparsity: float | None
    """Fraction of the prunable parameters that is gone."""
    parameters: int | None
    perplexity: dict[str, float | None]
    """Text -> perplexity on it."""
    stderr_nll: dict[str, float | None]
    """Text -> standard error of the mean loss, in nats per token."""
    step_seconds: float | None
    """Median of an optimiser step."""
    total_seconds: float | None


@dataclass(frozen=True, repr=False)
class CompareResult:
    """A comparison, told by its comparison.json."""

    folder: Path
    cells: tuple[ComparedRun, ...]
    warnings: tuple[str, ...]
    record: dict[str, Any]
    """The whole of comparison.json: conditions, best learning rates and figures over seeds too."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What was evaluated on."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.perplexity))

    def __repr__(self) -> str:
        failed = sum(cell.status != "done" for cell in self.cells)
        words = f", {failed} of them failed" if failed else ""
        return f"CompareResult({str(self.folder)!r}: {len(self.cells)} cells{words}; on {', '.join(self.texts)})"

    def _repr_html_(self) -> str:
        header = ("", "gone", "parameters", *(f"perplexity, {name}" for name in self.texts), "time", "status")
        lines = [
            (
                cell.name,
                f"{cell.sparsity:.1%}" if cell.sparsity is not None else "",
                human_count(cell.parameters) if cell.parameters is not None else "",
                *(f"{value:.2f}" if (value := cell.perplexity.get(name)) is not None else "" for name in self.texts),
                human_seconds(cell.total_seconds) if cell.total_seconds is not None else "",
                cell.status,
            )
            for cell in self.cells
        ]
        return shown.table(f"Comparison in {self.folder}", header, lines)

    @speaks_python()
    def plot(self) -> "Figure":
        """Perplexity against parameters, a panel for each text, as a matplotlib figure.

        Raises:
            InputError: there is no matplotlib.
        """

        def draw(figure: "Figure") -> None:
            from ..report import overview

            found = []
            for name in self.texts:
                points = [
                    overview.sized(cell.name, {"parameters": cell.parameters}, cell.perplexity.get(name), run)
                    for run, cell in enumerate(self.cells)
                ]
                if known := [point for point in points if point is not None]:
                    found.append((f"Perplexity, {name}", known))
            overview.draw_panels(found, figure)

        return shown.drawn(draw, (9.0, 3.6 * max(1, len(self.texts))))

    @speaks_python()
    def model(self, cell: str, *, dtype: str = "checkpoint", trust_remote_code: bool = False) -> "PreTrainedModel":
        """The pruned model of a cell, in evaluation mode on the CPU, where it was kept (`keep_checkpoints=True`).

        Args:
            cell: its name.
            dtype: checkpoint (as its files hold it), float32, bfloat16 or float16.
            trust_remote_code: allow code that came with the dense model.
        Raises:
            InputError: there is no such cell, or no checkpoint of it.
        """
        from .models import checkpoint_of

        return checkpoint_of(str(self._kept(cell)), dtype=dtype, trust_remote_code=trust_remote_code)

    @speaks_python()
    def tokenizer(self, cell: str) -> "PreTrainedTokenizerBase":
        """The tokenizer beside the model of a cell."""
        from .models import tokenizer_of

        return tokenizer_of(str(self._kept(cell)))

    def _kept(self, name: str) -> Path:
        known = [cell.name for cell in self.cells]
        if name not in known:
            raise InputError(f"no cell is called {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}.")
        place = self.folder / name / "checkpoint"
        if not (place / "config.json").is_file():
            raise InputError(f"{place} is not there: run the comparison with --keep-checkpoints to load its models.")
        return place


def compare_result(folder: Path, record: dict[str, Any]) -> CompareResult:
    """Out of a comparison's record.

    Raises:
        InputError: it is damaged.
    """
    cells = [_cell(row) for row in rows(record, "cells") if text(row, "cell") is not None]
    if not cells:
        raise InputError(f"{folder / 'comparison.json'} has no cells: {DAMAGED}")
    warnings = tuple(str(warning) for warning in rows(record, "warnings"))
    return CompareResult(folder, tuple(cells), warnings, record)


def _cell(row: dict[str, Any]) -> ComparedRun:
    parameters = number(row, "parameters")
    return ComparedRun(
        name=str(row["cell"]),
        kind=text(row, "kind") or "prune",
        status=text(row, "status") or "done",
        sparsity=number(row, "sparsity"),
        parameters=None if parameters is None else int(parameters),
        perplexity={name: number(value) for name, value in items(row, "perplexity")},
        stderr_nll={name: number(value) for name, value in items(row, "stderr_nll")},
        step_seconds=number(row, "step_seconds"),
        total_seconds=number(row, "total_seconds"),
    )
