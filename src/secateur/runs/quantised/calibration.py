"""What an export calibrates on: the text of the run, as its record names it."""

import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...config.prune import ExportConfig
from ...data.tokens import evaluation_tokens
from ...system.errors import InputError
from ...system.reading import PARSER_ERRORS

SEQ_LEN = 512


def calibration_segments(config: ExportConfig, tokenizer: PreTrainedTokenizerBase, more: int = 0) -> tuple[Tensor, str]:
    """(segments, 512) tokens of `--data`, or of what the run was trained on, and what that is called.

    Args:
        more: tokens beside `--calibration-tokens`.
    Raises:
        InputError: no record names a text, or it is too short.
    """
    spec = config.data or _data_of(Path(config.model).expanduser())
    ids, info = evaluation_tokens(spec, tokenizer, max_tokens=config.calibration_tokens + more, seq_len=SEQ_LEN)
    segments = ids[: len(ids) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
    if len(segments) < 2:
        raise InputError(f"--data {spec} has {len(ids)} tokens: {2 * SEQ_LEN} are needed at least.")
    return segments, str(info["data"])


def _data_of(folder: Path) -> str:
    """The text that the run trained on, as its record names it."""
    try:
        data = json.loads((folder / "result.json").read_text(encoding="utf-8"))["config"]["data"]
        return str(data if isinstance(data, str) else data[0])
    except (OSError, *PARSER_ERRORS, KeyError, TypeError, IndexError):
        raise InputError(
            f"--model {folder} has no record of the text that it was trained on: name one with --data."
        ) from None
