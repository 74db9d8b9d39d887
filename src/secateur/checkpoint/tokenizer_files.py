"""The tokenizer beside what is written: its source's files as they are, since saving them anew changes them.

transformers 5 writes its own class names, drops settings that older versions go by (`legacy`), tokenizer.model and the
code that a tokenizer comes with. The files of the source load wherever the source did.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from ..models.tokenizers import SETTINGS, code_of, file_of, ids_of_probes, probes
from ..system.quiet import quiet_transformers

FILES = (
    "tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
AUTO, PLAIN = "AutoTokenizer", "PreTrainedTokenizerFast"
OURS, OLDER = {"TokenizersBackend": PLAIN}, {"extra_special_tokens": "additional_special_tokens"}
"""What transformers 5 writes -> what earlier versions read as well."""


@dataclass(frozen=True)
class WrittenTokenizer:
    """How what was written is read."""

    reader: str
    """transformers' class: `AutoTokenizer`, or the one that follows the file where that one does not."""
    trust: bool
    """It comes with code of its own, which was trusted."""
    texts: list[str]
    ids: list[list[int]]
    """What the run's tokenizer makes of `texts`; a fresh process must find the same."""

    def to_dict(self) -> dict[str, Any]:
        return {"reader": self.reader, "trust": self.trust, "texts": self.texts, "ids": self.ids}


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> WrittenTokenizer:
    """Put a tokenizer into `folder`: the files that it was read from, or saved anew where it is not what they say.

    Where transformers builds another pipeline from the class that the files name (`load_tokenizer`), that name alone is
    changed, to the class that follows the file.
    """
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    texts, ids = probes(special), ids_of_probes(tokenizer)
    source = str(tokenizer.name_or_path or "")
    trusted = type(tokenizer).__module__.startswith("transformers_modules")
    copied = copied_files(source, folder) if source else []
    if trusted and copied:
        return WrittenTokenizer(AUTO, True, texts, ids)
    if copied:
        if _same(tokenizer, folder, AUTO):
            _in_older_words(tokenizer, folder, AUTO)
            return WrittenTokenizer(AUTO, False, texts, ids)
        _change(folder, lambda settings: settings | {"tokenizer_class": PLAIN})
        for reader in (AUTO, PLAIN):
            if _same(tokenizer, folder, reader):
                _in_older_words(tokenizer, folder, reader)
                return WrittenTokenizer(reader, False, texts, ids)
        for path in copied:
            path.unlink()
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
    _in_older_words(tokenizer, folder, AUTO)
    reader = AUTO if not tokenizer.is_fast or _same(tokenizer, folder, AUTO) else PLAIN
    return WrittenTokenizer(reader, trusted, texts, ids)


def copied_files(source: str, folder: Path) -> list[Path]:
    """Copy a source's tokenizer files, with what the umask lets; -> where they are. None of a source without any."""
    found = [(name, path) for name in FILES if (path := file_of(source, name)) is not None]
    if not any(name not in (SETTINGS, "chat_template.jinja", "chat_template.json") for name, _ in found):
        return []
    if Path(source).is_dir():
        found += [(f"{TEMPLATES}/{path.name}", path) for path in sorted(Path(source).glob(f"{TEMPLATES}/*.jinja"))]
    for module in {name.rpartition(".")[0] for name in code_of(source) if "--" not in name}:
        if (path := file_of(source, f"{module}.py")) is not None:
            found += [(each.name, each) for each in (path, *map(Path, get_relative_import_files(path)))]
    made = []
    for name, path in found:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        made.append(folder / name)
    return made


def _same(tokenizer: PreTrainedTokenizerBase, folder: Path, reader: str) -> bool:
    """Whether a tokenizer read back from `folder` is the one that was written."""
    try:
        with quiet_transformers():
            read = getattr(transformers, reader).from_pretrained(folder)
        return _state(read) == _state(tokenizer)
    except Exception:  # whatever makes a class refuse its files: another form is tried
        return False


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    return (
        ids_of_probes(tokenizer),
        tokenizer.get_vocab(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.chat_template,
    )


def _change(folder: Path, changed: Any) -> None:
    path = folder / SETTINGS
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(changed(settings), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _in_older_words(tokenizer: PreTrainedTokenizerBase, folder: Path, reader: str) -> None:
    """What transformers 5 wrote, here or in the source, put so that earlier versions read it, where that changes
    nothing for this one."""
    path = folder / SETTINGS
    saved = path.read_bytes() if path.is_file() else b"{}"
    settings = json.loads(saved)
    if _for_older_readers(settings) != settings:
        _change(folder, _for_older_readers)
        if not _same(tokenizer, folder, reader):
            path.write_bytes(saved)


def _for_older_readers(settings: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 saved, in the words of earlier versions, which both read."""
    named = settings.get("tokenizer_class")
    renamed = {OLDER.get(key, key) if isinstance(value, list) else key: value for key, value in settings.items()}
    return renamed | ({"tokenizer_class": OURS[named]} if named in OURS else {})
