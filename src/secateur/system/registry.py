"""A dictionary of named things whose lookup says what was meant."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from .errors import InputError

T = TypeVar("T")
MANY = 4
"""More unknown options than these are no slips."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence `Did you mean 'x'? ` for the closest known name, in whatever letters, or an empty string."""
    cased = {each.lower(): each for each in known}
    close = get_close_matches(name.lower(), cased, n=1)
    return f"Did you mean {cased[close[0]]!r}? " if close else ""


OTHER_NAMES = {
    "base-model": "model", "bf16": "dtype", "block-size": "seq-len", "cutoff-len": "seq-len", "d": "data",
    "dataset": "data", "dataset-name": "data", "device-map": "device", "force": "overwrite", "fp16": "dtype",
    "gpu": "device", "gradient-accumulation-steps": "accumulation", "learning-rate": "lr", "lora-alpha": "alpha",
    "lora-dropout": "dropout", "lora-r": "rank", "lora-rank": "rank", "m": "model", "max-length": "seq-len",
    "max-seq-len": "seq-len", "max-seq-length": "seq-len", "max-steps": "steps", "model-name": "model",
    "model-name-or-path": "model", "nsamples": "calibration-tokens", "num-epochs": "epochs",
    "num-train-epochs": "epochs", "o": "output", "out": "output", "output-dir": "output",
    "overwrite-output-dir": "overwrite", "per-device-train-batch-size": "batch-size", "precision": "dtype",
    "prune-ratio": "sparsity", "pruning-ratio": "sparsity", "r": "rank", "ratio": "sparsity",
    "resume-from-checkpoint": "resume", "save-dir": "output", "target-modules": "targets",
    "target-sparsity": "sparsity", "torch-dtype": "dtype", "train-data": "data", "train-file": "data",
    "warmup-ratio": "lr-warmup",
}  # fmt: skip
"""What other tools call an option -> what it is here."""


def option_meant(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'? ` for an option in other letters, by another tool's name, cut short or misspelt, or nothing.

    Args:
        word: what was given, without the dashes before it.
        known: options, spelt with `-` or `_`, and given back as they are.
    """
    names = {name.replace("_", "-").lower(): name for name in known}
    word = word.replace("_", "-").lower()
    if (name := OTHER_NAMES.get(word, word)) in names:
        return f"Did you mean {names[name]!r}? "
    alike = [name for name in names if len(word) > 2 and name.startswith(word)]
    alike = alike or [name for name in names if len(name) > 3 and word.startswith(f"{name}-")]
    close = get_close_matches(word, alike or names, n=1, cutoff=0 if alike else 0.7)
    return f"Did you mean {names[close[0]]!r}? " if close else ""


def unknown_options(given: Iterable[str], known: Collection[str], see: str = "") -> list[str]:
    """A fault for each option that is none, with what was meant; one for all where they are many.

    Args:
        see: what to do, at the end of each.
    """
    unknown = [name for name in given if name not in known]
    if len(unknown) > MANY:
        named = ", ".join(map(repr, unknown[:MANY]))
        return [f"{len(unknown)} unknown options, such as {named}: is the file that of another command? {see}".rstrip()]
    return [f"unknown option {name!r}. {option_meant(name, known)}{see}".rstrip() for name in unknown]


class Registry(Mapping[str, T]):
    """Names to values of one kind; an unknown name raises `InputError` with a suggestion.

    Args:
        listed_by: the command that lists the names, where they are too many for a message.
    """

    def __init__(self, kind: str, remedy: str = "", listed_by: str = "") -> None:
        self._kind = kind
        self._remedy = remedy
        self._listed_by = listed_by
        self._entries: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        if name in self._entries:
            raise InputError(f"{self._kind} {name!r} is already registered: choose another name.")
        self._entries[name] = value
        return value

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        known = f"Known: {', '.join(sorted(self._entries))}."
        if self._listed_by:
            known = f"{self._listed_by} lists the {len(self._entries)} that are known."
        raise InputError(
            f"unknown {self._kind} {name!r}. {did_you_mean(name, self._entries)}{known} {self._remedy}".rstrip()
        )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
