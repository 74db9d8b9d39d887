"""What is wrong with a config.json, in words: the key, its value and what would be right."""

import json
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..system.errors import InputError
from ..system.reading import PARSER_ERRORS
from ..system.registry import did_you_mean
from .families import FAMILIES
from .stock import said_once

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
MAY_BE_0 = ("intermediate_size", "num_key_value_heads", "head_dim")
"""Of a model type that is not known here: it may mean that there is none."""
MOST = {"num_hidden_layers": 10_000}
MOST_ENTRIES = 1 << 31
ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
RENAMED = {"su": "longrope"}
"""Types of rotary embeddings by their first names."""
LONGEST = 300


def config_error(name: str, *faults: str) -> InputError:
    """The error for a configuration that no model can be made of.

    Args:
        name: the model's.
        faults: clauses that name keys and values.
    """
    said = "; ".join(faults).rstrip(". ")
    said += "" if said.endswith("?") else "."
    return InputError(f"model {name!r}: config.json cannot be used: {said} Correct it, or copy the original one.")


def size_faults(config: PretrainedConfig) -> list[str]:
    """Sizes that no model has: transformers would build a part of it, or take all memory, before it noticed.

    Returns:
        a clause for each, such as `intermediate_size is -5: it must be at least 1`.
    """
    text = config.get_text_config(decoder=True)
    family = FAMILIES[text.model_type] if text.model_type in FAMILIES else None  # noqa: SIM401
    known = family is not None and family.experts is None
    faults = []
    for name in SIZES:
        value, key = said_once(text, name), text.attribute_map.get(name, name)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if value < (0 if name in MAY_BE_0 and not known else 1):
            faults.append(f"{key} is {value}: it must be at least 1")
        elif value > (most := MOST.get(name, MOST_ENTRIES)):
            faults.append(f"{key} is {value}: no model has more than {most:,}")
    longest = getattr(text, "max_position_embeddings", None)
    if known and isinstance(longest, int) and longest < 1:
        faults.append(f"max_position_embeddings is {longest}: it must be at least 1")
    if known and (said := _window_fault(text)):
        faults.append(said)
    chosen, experts = (getattr(text, key, None) for key in ("num_experts_per_tok", "num_local_experts"))
    experts = getattr(text, "num_experts", None) or experts
    mixture = not known  # a Jamba of dense layers alone has one expert, and chooses two
    if mixture and isinstance(chosen, int) and isinstance(experts, int) and chosen > experts > 0:
        faults.append(f"num_experts_per_tok is {chosen}: there are {experts} experts")
    return faults + _share_faults(text) + _rope_faults(getattr(text, "rope_parameters", None))


def _window_fault(text: PretrainedConfig) -> str:
    """A window that some layer has must hold a token beside its own: caches take no other."""
    kinds, window = getattr(text, "layer_types", None), getattr(text, "sliding_window", None)
    used = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", None) is not False
    if not used:
        return ""
    if window is None and kinds and hasattr(text, "sliding_window"):
        return "sliding_window is null, and layer_types has sliding_attention"
    few = isinstance(window, int) and window < 2
    return f"sliding_window is {window}: it must be at least 2, or null where no layer has one" if few else ""


def _share_faults(text: PretrainedConfig) -> list[str]:
    """Dropouts are only looked at when a model trains."""
    found = {key: value for key, value in vars(text).items() if key.endswith(("dropout", "_pdrop", "_drop"))}
    return [
        f"{key} is {value}: it must be at least 0 and below 1"
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < 1
    ]


def _rope_faults(rope: Any) -> list[str]:
    """Numbers of the rotary embedding that are none."""
    faults = []
    for key, value in _leaves(rope, "rope_parameters."):
        leaf = key.rpartition(".")[2]
        if leaf not in ROPE_NUMBERS or value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            faults.append(f"{key} is {value!r}: it must be a number")
        elif value <= 0:
            faults.append(f"{key} is {value}: it must be above 0")
    return faults


def token_warnings(config: PretrainedConfig) -> list[str]:
    """Special tokens beyond the vocabulary, which transformers takes: the model can neither read nor say them."""
    text = config.get_text_config(decoder=True)
    size, found = getattr(text, "vocab_size", None), []
    for key in SPECIAL:
        value = getattr(text, key, None)
        for token in value if isinstance(value, list | tuple) else [value]:
            if isinstance(token, int) and isinstance(size, int) and token >= size:
                found.append(f"{key} {token} is beyond the vocabulary of {size} tokens")
    return found


def fault_in_words(error: BaseException, values: Mapping[str, Any]) -> str:
    """What transformers says of a configuration in one line, with the keys and values that it is about.

    Args:
        values: config.json, or the configuration's `to_dict`.
    """
    text = _best_line(error)
    if "Padding_idx" in text:
        pad, size = values.get("pad_token_id"), values.get("vocab_size")
        return f"pad_token_id is {pad} and vocab_size {size}: a token's number must be below that"
    if isinstance(error, KeyError) and (found := [key for key, value in _leaves(values) if _is_key(key, value, error)]):
        rotary = found[0].startswith("rope")
        hint = did_you_mean(RENAMED.get(text, text), ROPE_INIT_FUNCTIONS if rotary else ACT2FN).strip()
        return f"{found[0]} is {error.args[0]!r}, which transformers does not know{'. ' + hint if hint else ''}"
    about = [f"{key} {value!r}" for key, value in _leaves(values) if _is_named(value, text) or _is_to_blame(key, value)]
    if isinstance(error, ImportError):
        about += [f"{key} {value!r}" for key, value in _leaves(values) if "attn_implementation" in key]
    numbers = re.findall(r"(?<![\w'`])\d+(?![\w'`])", text) if not any(key in text for key in SIZES) else []
    about += [f"{key} {values[key]}" for key in SIZES if str(values.get(key)) in numbers]
    about = [clause for clause in dict.fromkeys(about) if clause.split()[0].rpartition(".")[2] not in text]
    return f"{', '.join(about)}: {text}" if about else text


def _is_named(value: Any, text: str) -> bool:
    if not isinstance(value, str) or len(value) < 3:
        return False
    return re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", text) is not None


def _is_key(key: str, value: Any, error: KeyError) -> bool:
    """Whether a value is what some table of transformers' has no entry for; many keys are null and mean nothing."""
    missing = error.args[0] if error.args else ""
    return type(value) is type(missing) and value == missing and (value is not None or key.endswith("rope_type"))


def _is_to_blame(key: str, value: Any) -> bool:
    return key in SIZES and isinstance(value, int) and value < 1


def values_in(folder: Path | str) -> dict[str, Any]:
    """What a folder's config.json says; nothing where it is not there, or no JSON object."""
    try:
        values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS):
        return {}
    return values if isinstance(values, dict) else {}


def _best_line(error: BaseException) -> str:
    """Of several lines the one that tells values: after the heading `Validation error for ...` comes the reason."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]}"[:LONGEST]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and "alidation error for" in lines[0]:
        lines = [re.sub(r"^\w+(Error|Exception): ", "", lines[1])]
    text = re.sub(r"\([^()]{100,}\)", "(...)", " ".join(lines[0].split()))
    return text.split(". Errors:")[0].rstrip(".:")[:LONGEST]


def _leaves(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping."""
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value
