"""Evaluation texts by name, each put together as the pruning papers put it together.

A perplexity means something only beside others measured the same way, so a preset fixes the split, how its rows
are joined, and the segment length. The text comes from a file under `$SECATEUR_DATA`, or from the hub.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.evaluation import PRESET_SEQ_LENS
from ..system.errors import InputError
from ..system.registry import Registry
from .documents import read_documents

DATA_VARIABLE = "SECATEUR_DATA"


@dataclass(frozen=True)
class Preset:
    """One evaluation text and its segment length.

    `rows` makes the data set's rows of a file's lines, since the file and the hub's rows differ in white space.
    """

    text: str
    split: str
    file: str
    hub: str | None
    """Data set, configuration and split on the hub; None where the hub's copy cannot be loaded any more."""
    rows: Callable[[Sequence[str]], list[str]]
    joined_by: str
    joined: str
    """The same in words."""
    seq_len: int


def preset_text(name: str) -> tuple[str, dict[str, Any]]:
    """The text of a preset, and a record of what it is (as `tokens.evaluation_tokens` gives, without tokens).

    Raises:
        InputError: an unknown preset; a text that is neither under `$SECATEUR_DATA` nor on the hub.
    """
    preset = PRESETS[name]
    rows, origin = _local_rows(preset), f"${DATA_VARIABLE}/{preset.file}"
    if rows is None:
        rows, origin = _hub_rows(name, preset), str(preset.hub)
    text = preset.joined_by.join(rows)
    return text, {
        "data": origin,
        "preset": name,
        "text": preset.text,
        "split": preset.split,
        "joined": f"{len(rows):,} rows {preset.joined}",
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _local_rows(preset: Preset) -> list[str] | None:
    folder = os.environ.get(DATA_VARIABLE)
    path = Path(folder, preset.file) if folder else None
    if path is None or not path.is_file():
        return None
    try:
        source = path.read_bytes().decode("utf-8-sig")  # read_text would turn \r into \n
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): download it again.") from None
    return preset.rows(source.removesuffix("\n").split("\n"))


def _hub_rows(name: str, preset: Preset) -> list[str]:
    if preset.hub is None:
        raise InputError(
            f"--preset {name} needs the file {preset.file}: set {DATA_VARIABLE} to the folder that holds it."
        )
    try:
        return [document.text for document in read_documents(preset.hub)]
    except InputError as error:
        raise InputError(
            f"--preset {name}: no file {preset.file} in the folder that {DATA_VARIABLE} names, and {error}"
        ) from None


def _wikitext_rows(lines: Sequence[str]) -> list[str]:
    """As in the hub's WikiText: a line keeps its line break, a blank line is an empty row."""
    return [line + "\n" if line.strip() else "" for line in lines]


def _ptb_rows(lines: Sequence[str]) -> list[str]:
    """As in the hub's `ptb_text_only`: a sentence a row, stripped."""
    return [line.strip() for line in lines]


_WIKITEXT = (_wikitext_rows, "\n\n", "joined by a blank line")
_TEXTS = {
    "wikitext2": (
        "WikiText-2 raw", "test", "wikitext2_raw_test.txt", "Salesforce/wikitext:wikitext-2-raw-v1:test", *_WIKITEXT,
    ),
    "wikitext2-unk": (
        "WikiText-2 <unk>", "test", "wikitext2_unk_test.txt", "Salesforce/wikitext:wikitext-2-v1:test", *_WIKITEXT,
    ),
    # SparseGPT, Wanda
    "ptb": ("Penn Treebank", "test", "ptb_test.txt", None, _ptb_rows, " ", "joined by one space"),
    "ptb-lines": ("Penn Treebank", "test", "ptb_test.txt", None, _ptb_rows, "\n\n", "joined by a blank line"),
    # GPTQ, LLM-Pruner
    "ptb-valid": ("Penn Treebank", "validation", "ptb_valid.txt", None, _ptb_rows, "\n\n", "joined by a blank line"),
}  # fmt: skip
PRESETS: Registry[Preset] = Registry("preset")
for _name, _seq_len in PRESET_SEQ_LENS.items():
    PRESETS.register(_name, Preset(*_TEXTS[_name.removesuffix(f"-{_seq_len}")], _seq_len))
