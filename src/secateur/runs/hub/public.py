"""What of a result's folder is for others: its files as they are, but for the paths of this machine in its records."""

import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...data.embedded import BASE_MODEL, EMBEDDED_MODEL
from ...models.source import HUB_ID
from ...system.errors import InputError, VerificationError
from ...system.progress import phase
from ...system.reading import PARSER_ERRORS
from ...system.records import check_layout

Content = Path | bytes
TEXTS = (".md", ".json", ".jsonl", ".html", ".yaml", ".yml", ".txt", ".csv", ".svg", ".jinja", ".py", ".modelfile")
LEFT_OUT = ("runs", "__pycache__")
"""Folders that are no part of a result: what TensorBoard wrote, with this machine's name in the names of its files."""
HEAD = 2**24
"""Bytes at the start of a file of tensors that are searched for paths: where safetensors and GGUF have their texts."""
LOCAL = re.compile(r"(?:~|\.{0,2}/|[A-Za-z]:\\|\.{1,2}\\).*", re.DOTALL)
DATA = re.compile(r".*/.*\.(txt|jsonl?|csv|parquet|arrow|gguf|raw|ya?ml|gz|zst)", re.DOTALL)


def contents_of(place: Path, base_model: str | None) -> dict[str, Content]:
    """Path in the repository -> the file that goes there, or its bytes where they are other than the folder's.

    Weights, configuration and tokenizer go as they are. In records and card, paths of this machine become the last
    part of their names; the card says which model it comes of, as an adapter's configuration does.

    Args:
        place: the folder of a result, or a GGUF file.
        base_model: hub id; None: as the records have it.
    Raises:
        InputError: no result is there; an adapter whose base has no name on the hub; a path in a file of tensors.
        VerificationError: weights are not those that were verified.
    """
    files = {path.relative_to(place).as_posix(): path for path in _files(place)} if place.is_dir() else {}
    if place.is_file() and place.suffix.lower() == ".gguf":
        files = {place.name: place}
    _check_result(place, files)
    result = _json(files.get("result.json"))
    check_layout(result, place / "result.json")
    check_verified(place, result)
    adapter = _json(files.get("adapter_config.json"))
    base = base_model or _base_of(result, adapter)
    if adapter and base is None:
        raise no_base(str(adapter.get("base_model_name_or_path")))
    names = private_names(place, result, adapter, base)
    contents: dict[str, Content] = {}
    for name, path in files.items():
        if path.suffix.lower() in TEXTS:
            raw = path.read_bytes()
            cleaned = without(raw, names)
            contents[name] = path if cleaned == raw else cleaned
        else:
            _check_head(path, names)
            contents[name] = path
    contents["README.md"] = _card(contents.get("README.md"), place, base)
    return contents


def as_in(repo: str, place: Path, contents: dict[str, Content]) -> dict[str, Content]:
    """The same with a card whose code loads from the repository, where it names the folder."""
    card = read(contents["README.md"]).decode()
    card = card.replace(f"from_pretrained({json.dumps(place.name)}", f"from_pretrained({json.dumps(repo)}")
    card = card.replace(f"(base, {json.dumps(place.name)}", f"(base, {json.dumps(repo)}")
    return contents | {"README.md": card.encode()}


def no_base(name: str) -> InputError:
    """The error for an adapter that nobody else could load."""
    return InputError(
        f"an adapter is of use with its base model alone, and {Path(name).name} is a folder here: say what it is "
        "called on the hub with --base-model OWNER/NAME."
    )


def read(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def is_same(content: Content, digest: str) -> bool:
    """Whether a content has a digest of the hub's: SHA-256 of a large file, or git's SHA-1 of a blob."""
    if len(digest) == 64:
        return sha256_of(content) == digest
    data = read(content)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == digest


def sha256_of(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@phase("hashing the weights")
def weights_sha256(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the weights of a folder, as `result.json` keeps them of what was verified."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def check_verified(place: Path, result: dict[str, Any]) -> None:
    """Raises VerificationError where weights differ from those that the run verified; older records do not say."""
    noted = (result.get("export") or {}).get("sha256") if isinstance(result.get("export"), dict) else None
    if not isinstance(noted, dict):
        return
    found = weights_sha256(place)
    if differing := [name for name in sorted({*noted, *found}) if noted.get(name) != found.get(name)]:
        raise VerificationError(
            f"{place / differing[0]} is not what the run wrote and verified (its SHA-256 is another): nothing is "
            "uploaded. Write the result anew, or restore the file."
        )


def private_names(place: Path, result: dict[str, Any], adapter: dict[str, Any], base: str | None) -> dict[str, str]:
    """Path of this machine -> what others read in its place; the longest first."""
    recorded = result.get("config")
    config = recorded if isinstance(recorded, dict) else {}
    models = {str(name) for name in (config.get("model"), adapter.get("base_model_name_or_path")) if name}
    paths = {*_strings(result), *models, str(place), str(place.absolute()), str(place.resolve())}
    found: dict[str, str] = {}
    for text in paths:
        if _is_local(text):
            public = base if base and text in models else Path(text).name
            found[text] = public or text
            found.setdefault(str(Path(text).expanduser().absolute()), found[text])
    found = {text: public for text, public in found.items() if len(text) > 2 and text != public}
    found[f"{Path.home()}/"] = "~/"
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def without(raw: bytes, names: dict[str, str]) -> bytes:
    """A text with other names in the place of these, however JSON or HTML write them."""
    for text, public in names.items():
        for written in (lambda value: value, lambda value: json.dumps(value)[1:-1], html.escape):
            raw = raw.replace(written(text).encode("utf-8", "replace"), written(public).encode())
    return raw


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part in LEFT_OUT for part in parts):
            yield path


def _check_result(place: Path, files: dict[str, Path]) -> None:
    if not place.exists():
        raise InputError(f"{place}: no such folder or file: give a result's folder, or a GGUF file.")
    models = "config.json" in files and any(name.endswith(".safetensors") for name in files)
    if not (models or "adapter_config.json" in files or any(name.lower().endswith(".gguf") for name in files)):
        raise InputError(
            f"{place} holds no result (config.json with safetensors, an adapter, or a GGUF file): give the folder that "
            "prune, adapt or export wrote."
        )


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS):
        return {}
    return found if isinstance(found, dict) else {}


def _base_of(result: dict[str, Any], adapter: dict[str, Any]) -> str | None:
    """The base model's name on the hub, as far as the records have one."""
    config = result.get("config")
    name = config.get("model") if isinstance(config, dict) else adapter.get("base_model_name_or_path")
    return public_base(name) if isinstance(name, str) else None


def public_base(name: str) -> str | None:
    """The hub id of a model as a run was given it; None of a folder or file."""
    if name == EMBEDDED_MODEL:
        return BASE_MODEL
    return name if HUB_ID.fullmatch(name) and not _is_local(name) and not Path(name).exists() else None


def _is_local(text: str) -> bool:
    """Whether a text is, as a whole, a path of this machine that says more than a name."""
    if len(text) > 4096 or "\n" in text or "://" in text or "/" not in text.replace("\\", "/"):
        return False
    return bool(LOCAL.fullmatch(text) or DATA.fullmatch(text)) or Path(text).exists()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_head(path: Path, names: dict[str, str]) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD)
    for text in names:
        if text.encode("utf-8", "replace") in head and not text.startswith(str(Path.home())):
            raise InputError(f"{path} has a path of this machine in it ({text}): write the result anew without it.")


def _card(content: Content | None, place: Path, base: str | None) -> bytes:
    """The card with the base model in its front matter."""
    gguf = content is None and (place.is_file() or any(place.glob("*.gguf")))
    text = read(content).decode("utf-8", "replace") if content is not None else f"# {place.stem}\n"
    front: dict[str, Any] = {}
    if text.startswith("---\n") and "\n---" in text[4:]:
        head, _, rest = text[4:].partition("\n---")
        try:
            front = dict(yaml.safe_load(head) or {})
        except (yaml.YAMLError, TypeError, ValueError):
            raise InputError(f"{place / 'README.md'}: its metadata is not valid YAML: correct it.") from None
        text = rest.lstrip("\n")
    front.setdefault("library_name", "gguf" if gguf else "transformers")
    front.setdefault("pipeline_tag", "text-generation")
    front.setdefault("tags", ["secateur"])
    if base:
        front["base_model"] = base
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}\n---\n\n{text}".encode()
