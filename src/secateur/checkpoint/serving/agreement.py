"""How llama.cpp's predictions compare with transformers', and what is said of it."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ...config.formats import QUANTISATIONS
from ...system.progress import human_bytes


@dataclass(frozen=True)
class Agreement:
    """How llama.cpp's predictions on a text compare with transformers' in float32 on the checkpoint's weights."""

    largest: float
    """Largest difference of a log-probability (nats), of the tokens that transformers gives 1e-4 or more."""
    kl: float
    """Mean KL divergence (nats)."""
    top1: float
    """Share of positions at which both find the same token most likely."""
    perplexity: float
    """Of the file's, on the text."""
    reference: float
    """Of transformers', on the same."""


@dataclass(frozen=True)
class GgufReport:
    """What was written and how it was checked."""

    folder: str
    """The file."""
    format: str
    architecture: str
    """llama.cpp's name of it."""
    types: dict[str, int]
    """Type -> how many tensors with two dimensions or more have it."""
    parameters: int
    bytes: int
    weights: str
    """What its weights are called: an outtype or a quantisation."""
    converted: Agreement
    """Of the file as converted, before it was quantised."""
    agreement: Agreement
    """Of the file that was written."""
    tokens: int
    read_alike: bool
    """Whether llama.cpp tokenises the text as the checkpoint's tokenizer does."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"words": gguf_words(self)}


def agreement(found: Tensor, expected: Tensor, ids: Tensor) -> Agreement:
    """Two models' (1, tokens, vocabulary) logits on the same ids, as far as both vocabularies go: one may be padded."""
    both = min(found.shape[-1], expected.shape[-1])
    q, p = (each[0, :, :both].double().log_softmax(-1) for each in (found, expected))
    likely = p > math.log(1e-4)  # none, where a model of random weights knows nothing
    nll = [-each[:-1].gather(1, ids[0, 1:, None]).mean() for each in (q, p)]
    return Agreement(
        largest=max((q - p)[likely].abs().tolist(), default=0.0),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        top1=float((q.argmax(-1) == p.argmax(-1)).double().mean()),
        perplexity=float(nll[0].exp()),
        reference=float(nll[1].exp()),
    )


def gguf_words(report: GgufReport) -> str:
    """What was written, for a terminal."""
    kinds = ", ".join(f"{count} {name}" for name, count in report.types.items())
    found, first = report.agreement, report.converted
    lines = [
        f"{report.folder}: gguf ({report.architecture}), {report.parameters:,} parameters, "
        f"{human_bytes(report.bytes)}; tensors: {kinds}",
        *report.notes,
        f"verified: llama.cpp read it in a process of its own; on {report.tokens} tokens, beside transformers in "
        f"float32: log-probabilities within {first.largest:.2g}, the likeliest token the same at {first.top1:.0%}",
    ]
    if report.weights in QUANTISATIONS:
        lines[-1] += " (before quantising)"
        lines.append(
            f"quantised: {found.kl:.3g} nats off, the likeliest token the same at {found.top1:.0%}, perplexity of that "
            f"text {found.reference:.2f} -> {found.perplexity:.2f}"
        )
    if not report.read_alike:
        lines.append(
            "WARNING: llama.cpp splits that text into other tokens than the checkpoint's tokenizer: compare answers "
            "before you serve the file."
        )
    name = json.dumps(report.folder)
    return "\n".join(
        [*lines, "", f"    llama-server -m {name}", f"    echo FROM {name} > Modelfile && ollama create small"]
    )
