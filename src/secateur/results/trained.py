"""What `prune` and `adapt` came to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pruning.cut import Cut
from ..report import facts, quality
from ..report.runs import Run, at, items, number, rows
from ..system.voice import speaks_python
from . import shown
from .records import Record, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A run of `prune`, told by the records in its folder. What was not measured is None."""

    folder: Path
    model_name: str
    """The dense model, as it was given."""
    sparsity: float
    """Fraction of the prunable parameters that is gone, counted in the written checkpoint."""
    sparsity_of_model: float
    """The same of all parameters of the dense model."""
    dense_parameters: int
    parameters: int
    dense_bytes: int | None
    """Of the dense weights on disk, in the precision of the result."""
    bytes: int | None
    """Of the result's weights on disk."""
    dense_perplexity: float | None
    """On the run's evaluation text (`eval_data`), as is `perplexity`."""
    perplexity: float | None
    perplexity_stderr: float | None
    """Standard error of `perplexity`, from the spread between segments."""
    dense_forward_ms: float | None
    """Median milliseconds of a forward pass of the dense model; both models took turns."""
    forward_ms: float | None
    flop_speedup: float | None
    """FLOPs of the dense model over those of the result."""
    steps: int | None
    """Optimiser steps."""
    trained_tokens: int | None
    train_seconds: float | None
    total_seconds: float | None
    format: str | None
    """Of the checkpoint, such as `uniform`."""
    shapes: tuple[dict[str, Any], ...]
    """Heads, KV heads and FFN channels of each layer of the result, from the first."""
    cuts: tuple[Cut, ...]
    """What went, when, and by which scores."""
    metrics: tuple[dict[str, Any], ...]
    """Of each step: `step`, `loss` (nats per token), `sparsity`, `parameters`, `seconds` and more."""
    options: dict[str, Any]
    """The run's options, those at their defaults too."""
    record: dict[str, Any]
    """The whole of result.json."""
    run: Run = field(compare=False)
    """What the report reads: records of eval and sample beside the result are in it."""

    def __repr__(self) -> str:
        known = f", perplexity {self.dense_perplexity:.2f} -> {self.perplexity:.2f}" if self._measured else ""
        return (
            f"PruneResult({str(self.folder)!r}: {self.parameters:,} of {self.dense_parameters:,} parameters, "
            f"{self.sparsity:.2%} of the prunable ones gone{known})"
        )

    @property
    def _measured(self) -> bool:
        return self.dense_perplexity is not None and self.perplexity is not None

    def _repr_html_(self) -> str:
        return before_and_after(self.run)

    @speaks_python()
    def plot(self) -> "Figure":
        """Loss, sparsity, and what is left of each layer's units, as a matplotlib figure.

        Raises:
            InputError: there is no matplotlib.
        """
        return plotted(self.run)

    @speaks_python()
    def model(self, *, dtype: str = "checkpoint", trust_remote_code: bool = False) -> "PreTrainedModel":
        """The pruned model, in evaluation mode on the CPU; one with layers of different sizes needs no code of its own.

        Args:
            dtype: checkpoint (as its files hold it), float32, bfloat16 or float16.
            trust_remote_code: allow code that came with the dense model.
        Raises:
            InputError: the checkpoint is not there, or damaged.
        """
        from .models import checkpoint_of

        return checkpoint_of(str(self.folder), dtype=dtype, trust_remote_code=trust_remote_code)

    @speaks_python()
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer beside it."""
        from .models import tokenizer_of

        return tokenizer_of(str(self.folder))


@dataclass(frozen=True, repr=False)
class AdaptResult:
    """A run of `adapt`, told by the records in its folder. What was not measured is None."""

    folder: Path
    model_name: str
    """The model that the adapter is for, as it was given."""
    merged: bool
    """The folder holds the model with the adapter in its weights, not the adapter alone."""
    init_rank: int
    mean_rank: float
    """Of all LoRA layers at the end."""
    parameters: int
    """Of the adapter at the end."""
    bytes: int | None
    """Of the written weights on disk."""
    dense_perplexity: float | None
    """Without the adapter, on the run's evaluation text (`eval_data`)."""
    perplexity: float | None
    perplexity_stderr: float | None
    """Standard error of `perplexity`, from the spread between segments."""
    steps: int | None
    """Optimiser steps."""
    trained_tokens: int | None
    train_seconds: float | None
    total_seconds: float | None
    ranks: dict[str, int]
    """Layer -> its rank at the end."""
    ranks_after: dict[int, dict[str, int]]
    """Step of a cut -> layer -> its rank after it."""
    metrics: tuple[dict[str, Any], ...]
    """Of each step: `step`, `loss` (nats per token), `rank` (mean), `adapter_parameters`, `seconds` and more."""
    options: dict[str, Any]
    """The run's options, those at their defaults too."""
    record: dict[str, Any]
    """The whole of result.json."""
    run: Run = field(compare=False)
    """What the report reads."""

    def __repr__(self) -> str:
        known = f", perplexity {self.dense_perplexity:.2f} -> {self.perplexity:.2f}" if self._measured else ""
        return (
            f"AdaptResult({str(self.folder)!r}: rank {self.init_rank} -> {self.mean_rank:.4g}, "
            f"{self.parameters:,} parameters{known})"
        )

    @property
    def _measured(self) -> bool:
        return self.dense_perplexity is not None and self.perplexity is not None

    def _repr_html_(self) -> str:
        return before_and_after(self.run)

    @speaks_python()
    def plot(self) -> "Figure":
        """Loss, mean rank, and what is left of each layer's rank, as a matplotlib figure.

        Raises:
            InputError: there is no matplotlib.
        """
        return plotted(self.run)

    @speaks_python()
    def model(self, *, dtype: str = "checkpoint", trust_remote_code: bool = False) -> "PreTrainedModel | PeftModel":
        """The model with the adapter on it (PEFT's), or merged with it where it was written so; on the CPU.

        Args:
            dtype: of the model: checkpoint (as its files hold it), float32, bfloat16 or float16.
            trust_remote_code: allow code that came with the model.
        Raises:
            InputError: model or adapter is not there any more, or damaged.
        """
        from .models import adapter_of, checkpoint_of

        if self.merged:
            return checkpoint_of(str(self.folder), dtype=dtype, trust_remote_code=trust_remote_code)
        return adapter_of(self.model_name, self.folder, dtype=dtype, trust_remote_code=trust_remote_code)

    @speaks_python()
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        from .models import tokenizer_of

        return tokenizer_of(str(self.folder) if self.merged else self.model_name)


def prune_result(run: Run, removed: dict[str, Any]) -> PruneResult:
    """Out of a run's records.

    Args:
        removed: what units.json holds.
    Raises:
        InputError: a figure is missing that every result has.
    """
    record = Record(run.result, str(run.folder / "result.json"))
    options = record.mapping("config")
    return PruneResult(
        folder=run.folder,
        model_name=str(options.get("model")),
        sparsity=record.needed("sparsity", "reached"),
        sparsity_of_model=record.needed("sparsity", "model"),
        dense_parameters=int(record.needed("dense", "parameters")),
        parameters=int(record.needed("pruned", "parameters")),
        dense_bytes=record.whole("dense", "bytes"),
        bytes=record.whole("pruned", "bytes"),
        dense_perplexity=record.number("dense", "perplexity", "perplexity"),
        perplexity=record.number("pruned", "perplexity", "perplexity"),
        perplexity_stderr=record.number("pruned", "perplexity", "stderr"),
        dense_forward_ms=record.number("speed", "dense", "median_ms"),
        forward_ms=record.number("speed", "pruned", "median_ms"),
        flop_speedup=record.number("speed", "flop_speedup"),
        shapes=tuple(shape for shape in rows(run.result, "shapes") if isinstance(shape, dict)),
        cuts=tuple(_cut(cut) for cut in rows(removed, "cuts")),
        format=record.text("export", "format"),
        options=options,
        **spent(record, run),
    )


def adapt_result(run: Run, ranks: dict[str, Any]) -> AdaptResult:
    """Out of a run's records.

    Args:
        ranks: what ranks.json holds.
    Raises:
        InputError: a figure is missing that every result has.
    """
    record = Record(run.result, str(run.folder / "result.json"))
    options = record.mapping("config")
    return AdaptResult(
        folder=run.folder,
        model_name=str(options.get("model")),
        merged=record.text("export", "format") == "merged",
        init_rank=int(record.needed("adapter", "init_rank")),
        mean_rank=record.needed("adapter", "mean_rank"),
        parameters=int(record.needed("adapter", "parameters")),
        bytes=record.whole("export", "bytes"),
        dense_perplexity=record.number("dense", "perplexity", "perplexity"),
        perplexity=record.number("adapted", "perplexity", "perplexity"),
        perplexity_stderr=record.number("adapted", "perplexity", "stderr"),
        ranks=whole_numbers(at(ranks, "end")),
        ranks_after={int(number(cut, "step") or 0): whole_numbers(at(cut, "ranks")) for cut in rows(ranks, "cuts")},
        options=options,
        **spent(record, run),
    )


def before_and_after(run: Run) -> str:
    """A run's figures as a table, as they stand at the top of its page."""
    lines = [(f.label, f.before or "", f.after, f.change) for f in facts.headline(run)]
    lines += [
        (f"{m.label} ({m.conditions})", m.show(m.dense, m.dense_stderr), m.show(m.pruned, m.pruned_stderr), m.change)
        for m in quality.measures(run)
    ]
    caption = "; ".join(part for part in (facts.title(run), facts.subtitle(run), str(run.folder)) if part)
    return shown.table(caption, ("", "before", "after", "change"), lines)


def plotted(run: Run) -> "Figure":
    def draw(figure: "Figure") -> None:
        from ..report.overview import draw_run

        draw_run(run, figure)

    return shown.drawn(draw)


def spent(record: Record, run: Run) -> dict[str, Any]:
    """Steps, tokens and times, which all that train have alike, and the records themselves."""
    return {
        "steps": record.whole("data", "steps"),
        "trained_tokens": record.whole("data", "trained_tokens"),
        "train_seconds": record.number("train_seconds"),
        "total_seconds": record.number("total_seconds"),
        "metrics": tuple(run.metrics),
        "record": run.result,
        "run": run,
    }


def _cut(cut: Any) -> Cut:
    removed = {name: list(gone) for name, gone in items(cut, "removed") if isinstance(gone, list)}
    scores = {name: list(values) for name, values in items(cut, "scores") if isinstance(values, list)}
    return Cut(int(number(cut, "step") or 0), removed, scores, number(cut, "sparsity") or 0.0)
