"""Tokenizers by folder, GGUF file, hub id or embedded name, with the pipeline that their file says."""

import json
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from ..architecture.gguf import check_gguf
from ..data.gguf_tokens import follow_splits_
from ..system.errors import InputError
from ..system.quiet import quiet_transformers
from ..system.reading import PARSER_ERRORS, damaged, is_pointer, parse_json, read_text
from ..system.terminal.streams import safe
from .guards import check_hub, guarded, one_line
from .source import ModelSource

log = logging.getLogger("secateur")

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
ANY_OF = (FILE, "tokenizer.model", SETTINGS, "vocab.json", "vocab.txt")
TEXTS = (
    "2024 the cat",
    " Pruned  in 2024:\n    x = 42 + 7\n\n\treturn f(x)\r\n",
    "na\u00efve Caf\u00e9 e\u0301 \ufb01n \u2460 \u00bd",
    "\u4ed6\u526a\u679d\u3002\u6728\u306e\u679d \uac00\uc9c0",
    "\U0001f333 \U0001f469\u200d\U0001f33e don't I'LL",
    "",
)
"""What pipelines treat differently: digits, blanks before them and at the start, line ends, accents in both forms,
letters that normalisers replace, scripts without blanks, emoji, contractions."""
KINDS: dict[str, tuple[type | UnionType, str]] = {
    "model_max_length": (int | float, "a number"),
    "added_tokens_decoder": (dict, "an object"),
}
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or out of its GGUF file.

    transformers builds a class that tokenizer_config.json names anew, from the vocabulary of tokenizer.json alone.
    Where that gives other tokens than the file, the file's own pipeline is taken, and a warning says so.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    check_hub(source)
    if source.is_local and not source.gguf_file:
        _check_files(Path(source.path))
    if not source.gguf_file:
        _check_settings(source)
    options = {"gguf_file": source.gguf_file}
    if source.gguf_file:
        file = check_gguf(Path(source.path) / source.gguf_file)
        built_of_it = guarded(source, AutoTokenizer.from_pretrained, trust_remote_code, options, "tokenizer")
        return follow_splits_(built_of_it, file)
    path = file_of(source.path, FILE)
    if path is None or (trust_remote_code and code_of(source.path)):
        return guarded(source, AutoTokenizer.from_pretrained, trust_remote_code, options, "tokenizer")
    built, named = _built(path), None
    try:
        named = guarded(source, AutoTokenizer.from_pretrained, trust_remote_code, options, "tokenizer")
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, Exception) or code_of(source.path):
            raise
        if built is None:
            raise InputError(
                f"{path} cannot be read ({type(cause).__name__}: {one_line(cause)}): copy or download it again."
            ) from cause
        why = f"{settings_of(source.path).get('tokenizer_class')} cannot be built from it: {one_line(cause)}"
    else:
        if built is None or (found := difference(named, built)) is None:
            return named
        why = f"{type(named).__name__} reads {found[0]!r} with {found[1]}, the file with {found[2]}"
    own: PreTrainedTokenizerBase = guarded(
        source, PreTrainedTokenizerFast.from_pretrained, trust_remote_code, {}, "tokenizer"
    )
    if named is not None and ids_of_probes(named) == ids_of_probes(own):
        return named  # the difference lies in tokens that tokenizer_config.json adds
    log.warning(
        "%s: the tokenizer's class in transformers is not what its %s says (%s): the file's own pipeline is used",
        safe(source.name), FILE, safe(why),
    )  # fmt: skip
    return own


def tell_other_tokenizer(adapter: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of a tokenizer beside an adapter that is not the model's, which is the one that is used and written."""
    if file_of(adapter, FILE) is None or code_of(adapter):
        return
    own = load_tokenizer(ModelSource(adapter, adapter))
    added = sorted(own.get_vocab().keys() - tokenizer.get_vocab().keys())
    found = [f"tokens that the model's has not ({', '.join(added[:3])})"] if added else []
    if not added and ids_of_probes(own) != ids_of_probes(tokenizer):
        found.append("other token ids")
    if own.chat_template and own.chat_template != tokenizer.chat_template:
        found.append("another chat template")
    if found:
        log.warning(
            "--adapter %s comes with a tokenizer of its own, with %s: the model's is used, and written; if the adapter "
            "was trained with its own, copy the tokenizer's files over the model's",
            safe(adapter), safe(" and ".join(found)),
        )  # fmt: skip


def probes(special: list[str]) -> list[str]:
    """Texts that tell pipelines apart, with up to 8 of a tokenizer's special tokens among words."""
    return [*TEXTS, *(f"a{token} 1 {token}\nb" for token in special[:8])]


def difference(tokenizer: PreTrainedTokenizerBase, file: Tokenizer) -> tuple[str, list[str], list[str]] | None:
    """The first probe that a tokenizer and its file read differently, with the tokens of each from there on."""
    special = [token.content for _, token in sorted(file.get_added_tokens_decoder().items())]
    for text in probes(special):
        for whole in (False, True):
            ids = tokenizer(text, add_special_tokens=whole, verbose=False)["input_ids"]
            right = file.encode(text, add_special_tokens=whole).ids
            if list(ids) != right:
                same = next(i for i in range(len(right) + 1) if list(ids[: i + 1]) != right[: i + 1])
                return text, _shown(file, ids[same:]), _shown(file, right[same:])
    return None


def ids_of_probes(tokenizer: Any) -> list[list[int]]:
    """Token ids of the probes, with what the tokenizer puts around a text; to compare it with what was read back."""
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    return [list(tokenizer(text, verbose=False)["input_ids"]) for text in probes(special)]


def file_of(path: str, name: str) -> Path | None:
    """A file of a model's folder or hub repository; None where there is none."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    with quiet_transformers():
        found = cached_file(
            path, name, _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    return Path(found) if found else None


def settings_of(path: str) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing where it cannot be read."""
    file = file_of(path, SETTINGS)
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, *PARSER_ERRORS):
        return {}
    return found if isinstance(found, dict) else {}


def code_of(path: str) -> list[str]:
    """`module.Class` of each class of its own that a tokenizer comes with."""
    named = settings_of(path).get("auto_map") or {}
    listed = named.get("AutoTokenizer") if isinstance(named, dict) else named
    return [str(name) for name in ([listed] if isinstance(listed, str) else listed or []) if name]


def _built(path: Path) -> Tokenizer | None:
    """The pipeline of a tokenizer.json as the library that wrote it reads it; None where it does not."""
    try:
        file = Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare ones
        return None
    file.no_truncation()
    file.no_padding()
    return file


def _shown(file: Tokenizer, ids: Sequence[int], most: int = 5) -> list[str]:
    return [file.id_to_token(i) or str(i) for i in ids[:most]] + (["..."] if len(ids) > most else [])


def _check_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer, or with one that takes a library that is not there."""
    if not any((folder / name).is_file() for name in ANY_OF):
        raise InputError(f"{folder} has no tokenizer ({FILE}): copy the base model's there.")
    for path in sorted(folder.glob("*")):
        if (path.name in (*ANY_OF, "tokenizer_config.json") or path.suffix == ".model") and is_pointer(path):
            raise damaged(path, "")
    if any((folder / name).is_file() for name in (FILE, "vocab.json", "vocab.txt")):
        return
    models = [path for path in sorted(folder.glob("*.model")) if not _is_tiktoken(path)]
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if models and missing:
        names = " ".join(missing).replace("google.", "")
        raise InputError(
            f"{models[0]} is a sentencepiece model, and reading it needs {names}: pip install {names}, or put the "
            f"tokenizer's {FILE} beside it."
        )


def _check_settings(source: ModelSource) -> None:
    """Refuse what transformers trips over in a tokenizer's files without a word on where it stands."""
    folder, settings = Path(source.path), settings_of(source.path)
    earlier = () if "added_tokens_decoder" in settings else ("special_tokens_map.json", "added_tokens.json")
    for name in (SETTINGS, *earlier):
        path = folder / name
        if not path.is_file():
            continue
        values = parse_json(read_text(path, str(path)), str(path), "copy or download it again.")
        if path.read_bytes()[:3] == BOM_UTF8:
            raise InputError(f"{path} begins with a byte-order mark, which transformers cannot read: save it without.")
        if not isinstance(values, dict):
            raise InputError(f"{path} is no JSON object: copy or download it again.")
    if (template := folder / "chat_template.jinja").is_file():
        read_text(template, str(template))
    for key, (kind, words) in KINDS.items():
        value = settings.get(key)
        if value is not None and not isinstance(value, kind):
            raise _setting_error(source, key, f"is {json.dumps(value)[:80]}, and must be {words}")
    templates = settings.get("chat_template")
    listed = templates if isinstance(templates, list) else []
    if not all(isinstance(each, dict) and {"name", "template"} <= each.keys() for each in listed):
        raise _setting_error(source, "chat_template", "is a list whose entries must have `name` and `template`")


def _setting_error(source: ModelSource, key: str, words: str) -> InputError:
    return InputError(f"tokenizer {source.name!r}: {key} in {SETTINGS} {words}: correct it.")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return TIKTOKEN_LINE.fullmatch(file.readline(4096)) is not None
