"""The model card of a pruned checkpoint: what was done, what was measured, under which licence."""

import json
from pathlib import Path
from typing import Any

import yaml

from .embedded import BASE_MODEL, EMBEDDED_MODEL
from .given_adapter import rank_words
from .layered import MODULE, source_hash


def model_card(folder: Path, result: dict[str, Any], base_folder: Path | None) -> str:
    """Markdown with YAML front matter for the README.md of a checkpoint.

    Args:
        folder: the written checkpoint (its modelling file, if any, is hashed).
        result: what `result.json` holds.
        base_folder: the dense checkpoint, if it is a local folder.
    """
    config, export = result["config"], result["export"]
    licence = base_licence(base_folder) or {"license": "other"}
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **licence,
        "tags": ["secateur", "pruned", "lora"],
    }
    if not Path(config["model"]).exists():
        front["base_model"] = BASE_MODEL if config["model"] == EMBEDDED_MODEL else config["model"]
    name = Path(config["model"]).name
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {name}, {result['sparsity']['reached']:.0%} of its prunable parameters removed",
        "",
        _what_was_done(result),
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {label} | {before} | {after} |" for label, before, after in _figures(result)),
        "",
        "```python",
        export["loads_with"],
        "```",
        "",
        _licence_line(licence, known=base_folder is not None),
    ]
    modelling = folder / f"{MODULE}.py"
    if modelling.exists():
        digest = source_hash(modelling.read_text(encoding="utf-8"))
        lines += ["", f"`{MODULE}.py` gives each layer its own size (sha256 `{digest}`)."]
    lines += ["", "`result.json` has the whole configuration, `units.json` what was removed at which step."]
    return "\n".join(lines) + "\n"


def base_licence(base_folder: Path | None) -> str | None:
    """The licence that a local base model states, in its model card or in the manifest of the embedded model."""
    if base_folder is None:
        return None
    try:
        text = (base_folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
        if isinstance(front, dict) and isinstance(front.get("license"), str):
            return str(front["license"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        pass
    try:
        manifest = json.loads((base_folder / "secateur.json").read_text(encoding="utf-8"))
        return str(manifest["licence"]).lower()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _what_was_done(result: dict[str, Any]) -> str:
    config, data = result["config"], result["data"]
    texts = ", ".join(part["name"] for part in data["training"])
    held = f" over a base in {config['load_in']}, whose original weights are these" if config.get("load_in") else ""
    return (
        f"Pruned with [LoRAPrune](https://arxiv.org/abs/2305.18403) by secateur {result['environment']['secateur']} "
        f"while LoRA ({_lora_words(result)}) fine-tuned it{held}: criterion `{config['criterion']}`, "
        f"{config['schedule']} schedule, allocation `{config['allocation']}`, {data['steps']} steps on "
        f"{data['trained_tokens']:,} tokens of {texts}, learning rate {config['lr']}, seed {config['seed']}. "
        "LoRA is merged; the weights are ordinary."
    )


def _lora_words(result: dict[str, Any]) -> str:
    """Its rank, and where it came from when it is an adapter that was there before."""
    if adapter := result.get("adapter"):
        return f"{rank_words(adapter['ranks'])}, from an adapter of the base model's"
    return rank_words([result["config"]["rank"]])


def _figures(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    dense, pruned, speed = result["dense"], result["pruned"], result["speed"]
    rows = [
        ("parameters", f"{dense['parameters']:,}", f"{pruned['parameters']:,}"),
        ("bytes of weights", f"{dense['bytes']:,}", f"{pruned['bytes']:,}"),
    ]
    if own := speed.get("pruned"):
        before = f"{speed['dense']['median_ms']:.1f} ms" if "dense" in speed else "not measured"
        where = result["environment"]["cpu"]
        label = f"forward pass, {own['batch']} x {own['seq_len']} tokens, {own['dtype']}, {where}"
        rows.append((label, before, f"{own['median_ms']:.1f} ms"))
    if measured := pruned["perplexity"]:
        label = (
            f"perplexity, {result['data']['evaluation']['data']}, {measured['tokens_scored']:,} tokens in segments of "
        )
        before = f"{dense['perplexity']['perplexity']:.2f}" if dense["perplexity"] else "not measured"
        rows.append((f"{label}{measured['seq_len']}", before, f"{measured['perplexity']:.2f}"))
    return rows


def _licence_line(licence: str) -> str:
    if licence == "other":
        return "The licence is that of the base model, which was not found beside its weights."
    return f"The base model's licence applies: {licence}."
