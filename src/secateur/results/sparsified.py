"""What `sparsify` came to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.runs import Run
from ..system.voice import speaks_python
from .records import Record
from .trained import before_and_after, plotted, spent

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class SparsifyResult:
    """A run of `sparsify`, told by the records in its folder. What was not measured is None."""

    folder: Path
    model_name: str
    """The dense model, as it was given."""
    method: str
    pattern: str
    """Such as `2:4`, or a share."""
    zeros: int
    """Weights that are zero, counted in the result's linears; few more where some were zero before."""
    share: float
    """The same as a fraction of these linears' weights."""
    share_of_model: float
    """The same of all parameters."""
    parameters: int
    """Of the model, zeros too."""
    bytes: int | None
    """Of the result's weights on disk, where zeros take as much as other numbers."""
    dense_perplexity: float | None
    """On the run's evaluation text (`eval_data`), as are the next two."""
    untrained_perplexity: float | None
    """With the zeros, before LoRA was trained."""
    perplexity: float | None
    perplexity_stderr: float | None
    """Standard error of `perplexity`, from the spread between segments."""
    merge_kl: float | None
    """How far merging LoRA into the pattern moved the predictions (nats a token)."""
    steps: int | None
    """Optimiser steps."""
    trained_tokens: int | None
    train_seconds: float | None
    total_seconds: float | None
    format: str | None
    """Of the checkpoint."""
    metrics: tuple[dict[str, Any], ...]
    """Of each step: `step`, `loss` (nats per token), `seconds` and more; none without training."""
    options: dict[str, Any]
    """The run's options, those at their defaults too."""
    record: dict[str, Any]
    """The whole of result.json."""
    run: Run = field(compare=False)
    """What the report reads."""

    def __repr__(self) -> str:
        found = self.dense_perplexity, self.perplexity
        known = "" if None in found else ", perplexity {:.2f} -> {:.2f}".format(*found)
        return f"SparsifyResult({str(self.folder)!r}: {self.method} {self.pattern}, {self.share:.2%} zeros{known})"

    def _repr_html_(self) -> str:
        return before_and_after(self.run)

    @speaks_python()
    def plot(self) -> "Figure":
        """Loss over the training, as a matplotlib figure.

        Raises:
            InputError: there is no matplotlib.
        """
        return plotted(self.run)

    @speaks_python()
    def model(self, *, dtype: str = "checkpoint", trust_remote_code: bool = False) -> "PreTrainedModel":
        """The model with its zeros, in evaluation mode on the CPU.

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


def sparsify_result(run: Run) -> SparsifyResult:
    """Out of a run's records.

    Raises:
        InputError: a figure is missing that every result has.
    """
    record = Record(run.result, str(run.folder / "result.json"))
    options = record.mapping("config")
    return SparsifyResult(
        folder=run.folder,
        model_name=str(options.get("model")),
        method=str(options.get("method")),
        pattern=str(options.get("pattern")),
        zeros=int(record.needed("zeros", "zeros")),
        share=record.needed("zeros", "share"),
        share_of_model=record.needed("zeros", "of_model"),
        parameters=int(record.needed("pruned", "parameters")),
        bytes=record.whole("pruned", "bytes"),
        dense_perplexity=record.number("dense", "perplexity", "perplexity"),
        untrained_perplexity=record.number("zeros", "perplexity_before_training", "perplexity"),
        perplexity=record.number("pruned", "perplexity", "perplexity"),
        perplexity_stderr=record.number("pruned", "perplexity", "stderr"),
        merge_kl=record.number("export", "merge_kl"),
        format=record.text("export", "format"),
        options=options,
        **spent(record, run),
    )
