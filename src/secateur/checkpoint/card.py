"""The model card of a pruned checkpoint: what was done, what was measured, under which licence."""

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..architecture.layered import MODULE, source_hash
from ..config.pruning import UNITS
from ..criteria import CRITERIA
from ..data.embedded import BASE_MODEL, EMBEDDED_MODEL
from ..data.packing import scored_words
from ..models.adapter import rank_words
from ..models.guards import HUB_TIMEOUT_S
from ..models.source import HUB_ID
from ..system.reading import PARSER_ERRORS
from ..system.records import counted
from .older_readers import needs_newer
from .serving.engines import TAKE_IT, serving_block

log = logging.getLogger("secateur")


def model_card(folder: Path, result: dict[str, Any], base_folder: Path | None) -> str:
    """Markdown with YAML front matter for the README.md of a checkpoint.

    Args:
        folder: the written checkpoint (its modelling file, if any, is hashed).
        result: what `result.json` holds.
        base_folder: the dense checkpoint, if it is a local folder.
    """
    config, export = result["config"], result["export"]
    front = _front(config["model"], base_licence(config["model"], base_folder))
    if "calibration_tokens" in result["data"]:
        front["tags"].remove("lora")
    # The folder's own name: where it was written says nothing to others.
    loads_with = export["loads_with"].replace(json.dumps(export["folder"]), json.dumps(Path(export["folder"]).name))
    name = Path(config["model"]).name
    if pruned := result["pruned"]["perplexity"]:
        front |= model_index(Path(export["folder"]).name, result["data"]["evaluation"]["data"], pruned)
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
        loads_with,
        "```",
        *serving_block(export),
        *needs_newer(folder),
        "",
        _licence_line(front),
    ]
    modelling = folder / f"{MODULE}.py"
    if modelling.exists():
        digest = source_hash(modelling.read_text(encoding="utf-8"))
        lines += ["", f"`{MODULE}.py` gives each layer its own size (sha256 `{digest}`)."]
    lines += ["", "`result.json` has the whole configuration, `units.json` what was removed at which step."]
    return "\n".join(lines) + "\n"


def plain_card(name: str, parameters: int, what: str, loads_with: str, base_folder: Path | None) -> str:
    """The card of a checkpoint that no recorded run wrote (`Pruner.export`).

    Args:
        name: of the base model: a folder's path, a hub id, or empty.
        parameters: of the checkpoint.
        what: criterion and format, in a clause.
    """
    front = _front(name, base_licence(name, base_folder))
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---\n\n# {Path(name).name or 'A model'}, pruned\n\n"
        f"Pruned with secateur {version('secateur')}: {parameters:,} parameters are left. {what}\n\n"
        f"```python\n{loads_with}\n```\n\n{_licence_line(front)}\n"
    )


def sparse_card(result: dict[str, Any], base_folder: Path | None) -> str:
    """The card of a checkpoint with zeros in its weights (`secateur sparsify`).

    Args:
        result: what `result.json` holds.
        base_folder: the dense checkpoint, if it is a local folder.
    """
    config, zeros, export, data = result["config"], result["zeros"], result["export"], result["data"]
    front = _front(config["model"], base_licence(config["model"], base_folder))
    texts = ", ".join(_public(part["name"]) for part in data["training"])
    done = f"Made sparse by secateur {result['environment']['secateur']}: method `{config['method']}`, pattern "
    done += f"`{config['pattern']}`"
    if zeros["calibration_tokens"]:
        done += f", by {zeros['calibration_tokens']:,} tokens of {texts}"
    if data["trained_steps"]:
        kept = "into the weights that stay alone" if config["keep_pattern"] else "into all weights: the zeros are gone"
        done += f"; then LoRA (rank {config['rank']}, {data['trained_steps']} steps, merged {kept})"
    else:
        front["tags"].remove("lora")
    if measured := result["pruned"]["perplexity"]:
        front |= model_index(Path(export["folder"]).name, data["evaluation"]["data"], measured)
    loads_with = export["loads_with"].replace(json.dumps(export["folder"]), json.dumps(Path(export["folder"]).name))
    rows = [f"| {label} | {before} | {after} |" for label, before, after in _figures(result)]
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---\n\n# {Path(config['model']).name}, "
        f"{zeros['share']:.0%} of its layers' weights zero\n\n{done}. The file is an ordinary one and no smaller: the "
        "zeros are stored, and multiplied unless a reader knows of them.\n\n| | before | after |\n|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```python\n{loads_with}\n```\n\n{_licence_line(front)}\n"
    )


PADDED_SAYS = (
    "This is the `padded` form: every layer is zero-padded to the widest, so it computes the same and loads in the "
    "stock class without code of its own. It is larger and no faster than the layered checkpoint, whose figures "
    "are above; that one's `result.json` and `units.json` have the whole configuration."
)


def padded_card(card: str, loads_with: str, serving: list[str], said: str = PADDED_SAYS) -> str:
    """A layered checkpoint's card as that of another form: how that one loads.

    Args:
        serving: its `serving_block`.
        said: what the form is.
    """
    code = "\n".join([f"```python\n{loads_with}\n```", *serving])
    others = (f"`{MODULE}.py`", "`result.json`", TAKE_IT, "```sh")
    blocks = [block for block in card.split("\n\n") if not block.startswith(others)]
    at = next((number for number, block in enumerate(blocks) if block.startswith("```python")), None)
    if at is None:
        return card.rstrip() + f"\n\n{said}\n\n{code}\n"
    blocks[at : at + 1] = [said, code]
    return "\n\n".join(blocks).rstrip() + "\n"


def base_licence(name: str, base_folder: Path | None) -> dict[str, Any]:
    """What the base model's card says of its licence: `license` and, of one without an identifier, name and link.

    Args:
        name: a hub id, asked for its card where there is no folder; nothing is waited for long.
    """
    if base_folder is None:
        return _licence_in(_hub_front(name))
    try:
        text = (base_folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
        if found := _licence_in(front):
            return found
    except (OSError, *PARSER_ERRORS, yaml.YAMLError, IndexError):
        pass
    try:
        manifest = json.loads((base_folder / "secateur.json").read_text(encoding="utf-8"))
        return {"license": str(manifest["licence"]).lower()}
    except (OSError, *PARSER_ERRORS, KeyError, TypeError):
        return {}


def _licence_in(front: Any) -> dict[str, Any]:
    keys = ("license", "license_name", "license_link")
    return {key: _text_of(front[key]) for key in keys if front.get(key)} if isinstance(front, dict) else {}


def _text_of(value: Any) -> str | list[str]:
    """A card's value as text, or a list of texts: YAML has dates, numbers and halves of characters, too."""
    if isinstance(value, list):
        return [str(_text_of(item)) for item in value]
    return str(value).encode("utf-8", "replace").decode()


def _hub_front(name: str) -> dict[str, Any] | None:
    """A hub model's card data. A run that is done does not fail over it."""
    if not HUB_ID.fullmatch(name):
        return None
    try:
        from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache

        if isinstance(cached := try_to_load_from_cache(name, "README.md"), str):
            return dict(ModelCard.load(cached).data.to_dict())
        found = HfApi().model_info(name, timeout=HUB_TIMEOUT_S).card_data
        return dict(found.to_dict()) if found else None
    except Exception as error:  # the HTTP client's classes differ between versions
        log.info("the licence of %s is not known: %s", name, error)
        return None


def _front(model: str, licence: dict[str, Any]) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        **licence,
        "tags": ["secateur", "pruned", "lora"],
    }
    if model and not Path(model).expanduser().exists():
        front["base_model"] = BASE_MODEL if model == EMBEDDED_MODEL else model
    return front


def model_index(name: str, text: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The front matter's measured figures, as the hub reads them.

    Args:
        name: of the result.
        text: the evaluation text, as the run was given it.
        measured: `Perplexity.to_dict`.
    """
    metric = {
        "type": "perplexity",
        "name": f"perplexity of {measured['tokens_scored']:,} tokens {scored_words(measured)}",
        "value": round(float(measured["perplexity"]), 4),
    }
    data, task = _public(text), f"text{'2text' * bool(measured.get('pairs'))}-generation"
    found = {"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": [metric]}
    return {"model-index": [{"name": name, "results": [found]}]}


def adapter_front(model: str, base_folder: Path | None) -> dict[str, Any]:
    """The front matter of an adapter's card."""
    front = _front(model, base_licence(model, base_folder))
    return front | {"library_name": "peft", "tags": ["secateur", "lora"]}


def _public(spec: str) -> str:
    """A data set's name; of a local path its last part alone: where it lies is its owner's business."""
    path = Path(spec).expanduser()
    return path.name if path.exists() or path.is_absolute() else spec


def _what_was_done(result: dict[str, Any]) -> str:
    config, data = result["config"], result["data"]
    texts = ", ".join(_public(part["name"]) for part in data["training"])
    held = f" over a base in {config['load_in']}, whose original weights are these" if config.get("load_in") else ""
    criterion = config["criterion"]
    paper = "with [LoRAPrune](https://arxiv.org/abs/2305.18403) " if criterion == "lora" else ""
    meaning = f" ({CRITERIA[criterion].summary})" if criterion != "lora" and criterion in CRITERIA else ""
    units, usual = config.get("units", UNITS[0]), f"allocation `{config['allocation']}`"
    allocation = usual if units == UNITS[0] else f"units `{units}`, {usual}"
    if (tokens := data.get("calibration_tokens")) is not None:
        refit = "no refit" if config["compensate"] == "none" else f"refit `{config['compensate']}`"
        held += f", with LoRA ({_lora_words(result)}) merged" if result.get("adapter") else ""
        cuts = f"{counted(config['cuts'], 'cut')} by {tokens:,} tokens of {texts} each"
        return (
            f"Pruned by secateur {result['environment']['secateur']} without training{held}: criterion "
            f"`{criterion}`{meaning}, {allocation}, {refit}, {cuts}, seed {config['seed']}. The weights are ordinary."
        )
    when = "in one cut, before" if config["schedule"] == "one-shot" else "while"
    return (
        f"Pruned {paper}by secateur {result['environment']['secateur']} "
        f"{when} LoRA ({_lora_words(result)}) fine-tuned it{held}: criterion `{criterion}`{meaning}, "
        f"{config['schedule']} schedule, {allocation}, "
        f"{data.get('trained_steps', data['steps'])} steps on "
        f"{data['trained_tokens']:,} tokens of {texts}, learning rate {config['lr']}, seed {config['seed']}. "
        "LoRA is merged; the weights are ordinary."
    )


def _lora_words(result: dict[str, Any]) -> str:
    """Its rank, and where it came from when it is an adapter that was there before."""
    if adapter := result.get("adapter"):
        return f"{rank_words(adapter['ranks'])}, from an adapter of the base model's"
    return rank_words([result["config"]["rank"]])


def _figures(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    dense, pruned, speed = result["dense"], result["pruned"], result.get("speed", {})
    label = "bytes of weights"
    if stored := dense.get("stored_bytes"):
        label += f", both in {dense['dtype']} (the base model's files have {stored:,})"
    rows = [
        ("parameters", f"{dense['parameters']:,}", f"{pruned['parameters']:,}"),
        (label, f"{dense['bytes']:,}", f"{pruned['bytes']:,}"),
    ]
    if own := speed.get("pruned"):
        before = f"{speed['dense']['median_ms']:.1f} ms" if "dense" in speed else "not measured"
        where = result["environment"].get("device") or result["environment"]["cpu"]
        label = f"forward pass, {own['batch']} x {own['seq_len']} tokens, {own['dtype']}, {where}"
        rows.append((label, before, f"{own['median_ms']:.1f} ms"))
    if measured := pruned["perplexity"]:
        text, where = _public(result["data"]["evaluation"]["data"]), scored_words(measured)
        label = f"perplexity, {text}, {measured['tokens_scored']:,} tokens {where}"
        before = f"{dense['perplexity']['perplexity']:.2f}" if dense["perplexity"] else "not measured"
        rows.append((label, before, f"{measured['perplexity']:.2f}"))
    return rows


def _licence_line(front: dict[str, Any]) -> str:
    licence, name, link = (front.get(key) for key in ("license", "license_name", "license_link"))
    if licence == "other" and not (name or link):
        return "The licence is that of the base model, whose card does not state it or was not found."
    words = ", ".join(licence) if isinstance(licence, list) else name if licence == "other" and name else licence
    return f"The base model's licence applies: {words}{f' ({link})' if link else ''}."
