"""What readers of older keys need in config.json beside today's, so that they compute the same function.

transformers 5 writes rotary positions under `rope_parameters` and precision under `dtype`. Readers that do not know
these (transformers 4, engines with configuration code of their own) take their default in place of them: another
model, without a word. Both forms together are read alike by both.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..architecture.stock import LAYERS_KEY
from ..system.quiet import quiet_transformers

THETAS = {
    "gpt_neox": ("rotary_emb_base", None),
    "gpt_neox_japanese": ("rotary_emb_base", None),
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
}
"""Model type -> older names of the base frequency, of layers that see all and of those with a window; a type that is
not here calls it `rope_theta` and has one for all."""
PARTIAL = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
"""Model type -> older name of the rotated part of a head; else `partial_rotary_factor`."""
THREE_KEYS = {"phi3": ("type", "short_factor", "long_factor")}
"""Model types whose older configuration class takes these keys of `rope_scaling` only."""
APART = ("rope_theta", "partial_rotary_factor")
NEWER_NAMES = ("gpt_neox",)
"""Model types whose tensors transformers 5 calls otherwise; it saves stock classes under the old names."""
EXPERTS = ("num_experts", "num_local_experts")
"""Two names of one number, of which each version writes the one or the other."""


def add_older_keys(folder: Path) -> None:
    """Write the older keys into a folder's config.json, where transformers then reads the same from it."""
    file = folder / "config.json"
    before = file.read_text(encoding="utf-8")
    values = json.loads(before)
    wider = with_older_keys(values)
    if wider != values and _read(wider) == _read(values):
        file.write_text(json.dumps(wider, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def with_older_keys(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json's values with the older keys beside the newer; those of configurations inside it, too."""
    found = {
        key: with_older_keys(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in values.items()
    }
    if (count := values.get(EXPERTS[0], values.get(EXPERTS[1]))) is not None:
        found |= dict.fromkeys(EXPERTS, count)
    if isinstance(values.get("dtype"), str):
        found["torch_dtype"] = values["dtype"]
    rope = values.get("rope_parameters")
    return found | _older_rope(values, rope) if isinstance(rope, dict) else found


def needs_newer(folder: Path) -> list[str]:
    """Of a card: that earlier versions of transformers read another function, where the older keys cannot say this
    one; nothing where they can."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = any(name in values for pair in (*THETAS.values(), APART) for name in pair)
    if values.get("rope_parameters") and not said:
        what = "Its rotary positions cannot be said"
    elif values.get("model_type") in NEWER_NAMES and LAYERS_KEY in values:
        what = "Its tensors are not named"
    else:
        return []
    return ["", f"{what} as transformers 4 reads them: it needs transformers 5 or later."]


def _older_rope(values: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    model_type = values.get("model_type", "")
    name, local_name = THETAS.get(model_type, ("rope_theta", None))
    wide = rope.get("full_attention") if "full_attention" in rope or "sliding_attention" in rope else rope
    if not isinstance(wide, dict) or "rope_theta" not in wide:
        return {}  # no rotary positions, or each layer's own, which the older form cannot say
    found: dict[str, Any] = {name: wide["rope_theta"]}
    narrow = rope.get("sliding_attention")
    if isinstance(narrow, dict):
        if local_name is not None:
            found[local_name] = narrow.get("rope_theta")
        elif narrow.get("rope_theta") != wide["rope_theta"]:
            return {}
    if "partial_rotary_factor" in wide:
        found[PARTIAL.get(model_type, "partial_rotary_factor")] = wide["partial_rotary_factor"]
    kind = wide.get("rope_type", "default")
    if kind != "default":
        scaling = {key: value for key, value in wide.items() if key not in APART} | {"rope_type": kind, "type": kind}
        found["rope_scaling"] = {key: scaling[key] for key in THREE_KEYS.get(model_type, scaling) if key in scaling}
        if kind == "longrope" and "original_max_position_embeddings" in wide:
            found["original_max_position_embeddings"] = wide["original_max_position_embeddings"]
    return found


def _read(values: dict[str, Any]) -> dict[str, Any] | None:
    """What transformers makes of a config.json, without the older keys; None where it has no class for it."""
    model_type = values.get("model_type", "")
    with quiet_transformers():
        try:
            kind: type[PreTrainedConfig] = type(AutoConfig.for_model(model_type))
        except ValueError:
            return None
        found = kind.from_dict(json.loads(json.dumps(values), object_hook=_infinite)).to_dict()  # changes what it gets
    names = {name for pair in THETAS.values() for name in pair} | set(PARTIAL.values())
    older = {*names, *APART, *EXPERTS, "rope_scaling", "torch_dtype", "original_max_position_embeddings"}
    return {key: _untyped(value) for key, value in found.items() if key not in older}


def _infinite(values: dict[str, Any]) -> Any:
    """A number that JSON has no word for, as transformers writes it (`{"__float__": "Infinity"}`)."""
    return float(values["__float__"]) if values.keys() == {"__float__"} else values


def _untyped(rope: Any) -> Any:
    """Rotary settings without `type`, the older name of `rope_type`, which both forms have."""
    return {key: _untyped(value) for key, value in rope.items() if key != "type"} if isinstance(rope, dict) else rope
