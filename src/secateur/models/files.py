"""Which files a checkpoint consists of, and which tensors are in them: from names and headers, no weights are read."""

import json
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from ..architecture.config_faults import values_in
from ..architecture.gguf import check_gguf
from ..system.errors import InputError, out_of_memory
from ..system.reading import PARSER_ERRORS, damaged
from .checks import check_kinds, check_method, check_scales, hash_of_headers, unfit_shapes
from .source import ModelSource

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth")


def check_checkpoint(source: ModelSource) -> None:
    """Read the headers of a local checkpoint's files (milliseconds): nothing missing, truncated, pickled or packed.

    Raises:
        InputError: names the file and the remedy. A hub id is not checked here.
    """
    if not source.is_local:
        return
    folder = Path(source.path)
    if source.gguf_file:
        check_gguf(folder / source.gguf_file)
        return
    handled = check_method(folder)
    tensor_places(folder)
    _check_headers(folder, [(path, kinds_in(path)) for path in weight_files(folder)], handled)


def _check_headers(folder: Path, headers: list[tuple[Path, dict[str, str]]], handled: bool) -> None:
    for path, kinds in headers:
        check_kinds(path, kinds, handled)
    check_scales(folder, {name: kind for _, kinds in headers for name, kind in kinds.items()})


def check_numbers(source: ModelSource) -> None:
    """Refuse weights that are codes and scales, which transformers would take for the weights themselves.

    Of files that are not there, or cannot be read, nothing is said: `check_checkpoint` does.

    Raises:
        InputError: names the method, or the tensor, and the remedy.
    """
    folder = folder_of(source)
    if folder is None or source.gguf_file:
        return
    handled = check_method(folder)
    try:
        headers = [(path, kinds_in(path)) for path in weight_files(folder)]
    except InputError:
        return
    _check_headers(folder, headers, handled)


def check_shapes(source: ModelSource, empty: PreTrainedModel) -> None:
    """Tensors whose size is not the one that config.json says, found before the memory for either is taken.

    Files that are not there or cannot be read are not this check's; nor are packed weights.

    Args:
        empty: the model without weights.
    Raises:
        InputError: names the tensor, both shapes and the keys that say otherwise.
    """
    if not source.is_local or source.gguf_file or getattr(empty.config, "quantization_config", None):
        return
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    try:
        paths = weight_files(Path(source.path))
    except InputError:
        return
    for path in paths:
        try:
            with safe_open(path, framework="pt") as tensors:
                found = {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys() if n in expected}  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
        if other := [name for name, shape in found.items() if prod(shape) != prod(expected[name])]:
            name = other[0]
            raise unfit_shapes(source.name, empty.config, len(other), name, found[name], expected[name])


def contents_of(source: ModelSource, model_config: PretrainedConfig) -> str | None:
    """What a model is beyond its name: a hash of config.json and of its weights' names, kinds, shapes and places.

    Of a hub model the commit; None where neither is known. Reads headers only, so that it costs nothing.
    """
    if not source.is_local:
        return getattr(model_config, "_commit_hash", None)
    folder = Path(source.path)
    files = [source.gguf_file] if source.gguf_file else [str(path.relative_to(folder)) for path in weight_files(folder)]
    return hash_of_headers(folder, files if source.gguf_file else ["config.json", *files])


def folder_of(source: ModelSource) -> Path | None:
    """The folder that a model is read from: its own, or the one in the hub's cache, if it is there."""
    if source.is_local:
        return Path(source.path)
    try:
        found = cached_file(source.path, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(found).parent if found else None


def source_bytes(source: ModelSource) -> int | None:
    """Bytes of a model's weights on disk; None of a hub id whose files are not all in the cache."""
    folder = folder_of(source)
    if folder is None:
        return None
    if source.gguf_file:
        return (folder / source.gguf_file).stat().st_size
    try:
        return checkpoint_bytes(folder)
    except (InputError, OSError):
        return None


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's safetensors files; of what else lies in its folder, nothing.

    Raises:
        InputError: as `weight_files`.
    """
    return sum(path.stat().st_size for path in weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """A checkpoint folder's safetensors files, as transformers chooses: `SINGLE`, else those that `INDEX` names.

    Raises:
        InputError: there is none, they are pickles or GGUF files, or the index is damaged.
    """
    entry = _entry(folder)
    return (
        [entry] if entry.suffix == ".safetensors" else [folder / name for name in sorted({*read_index(entry).values()})]
    )


def _entry(folder: Path) -> Path:
    """The one file of weights, or their index."""
    named = _named_in_config(folder)
    for name in [named] if named else [SINGLE, INDEX]:
        if (folder / name).is_file():
            return folder / name
    if named:
        raise InputError(f"{folder} is incomplete: {named}, which config.json names, is missing: copy it again.")
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        raise InputError(f"{folder} has no safetensors but GGUF files: give one, such as {folder / ggufs[0]}.")
    if any(next(folder.glob(pattern), None) for pattern in PICKLED):
        raise InputError(
            f"{folder} has its weights as pickles only, which can run code when they are opened: where you trust "
            "them, convert once with model.save_pretrained(new_folder), which writes safetensors, and give that."
        )
    raise InputError(f"{folder} has no weights: expected {SINGLE}, or {INDEX} and its files.")


def _named_in_config(folder: Path) -> str | None:
    """The file, or the index, that `transformers_weights` in config.json names in place of the usual ones."""
    name = values_in(folder).get("transformers_weights")
    if name is not None and (
        not str(name).endswith((".safetensors", ".safetensors.index.json")) or _outside(str(name))
    ):
        raise InputError(
            f"{folder}/config.json: transformers_weights is {json.dumps(name)[:60]}, which is no safetensors file, or "
            "index of such, in this folder: take the key out, or correct it."
        )
    return name


def _outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, of the index at `path`.

    Raises:
        InputError: it is not JSON, has no `weight_map` of names, or names files outside the folder.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *PARSER_ERRORS) as error:
        raise damaged(path, error) from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise InputError(
            f"{path} is corrupt: `weight_map` must give every tensor its file, and is "
            f"{json.dumps(places)[:60]}: copy or download it again."
        )
    for name, file in places.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise InputError(
                f"{path} is corrupt: it has {name} in {json.dumps(file)[:60]}, which is no safetensors file: copy or "
                "download it again."
            )
        if _outside(file):
            raise InputError(f"{path} names {file}, which is not in its folder: put the file beside the index.")
    if not isinstance(index.get("metadata"), dict):
        raise InputError(f'{path} has no `metadata`, which transformers needs: add "metadata": {{}} to it.')
    return places


def tensor_places(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that it is in, from the files' own headers, which is what transformers goes by.

    Raises:
        InputError: as `weight_files`; a file is missing or damaged, holds what another one does, or the index has a
            tensor where it is not.
    """
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        for name in kinds_in(path):
            if name in found:
                raise InputError(
                    f"{folder}: {name} is in {found[name].name} and in {path.name}, so the files are of two "
                    "checkpoints: copy or download all of them again."
                )
            found[name] = path
    entry = _entry(folder)
    for name, file in read_index(entry).items() if entry.suffix == ".json" else ():
        if found.get(name) != folder / file:
            raise InputError(
                f"{entry} has {name} in {file}, which does not hold it: copy or download the index and its files "
                "again, together."
            )
    return found


def kinds_in(path: Path) -> dict[str, str]:
    """Tensor name -> its kind as safetensors calls it (`BF16`), of a file.

    Raises:
        InputError: it is missing, or cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} is incomplete: {path.name}, named in {INDEX}, is missing: copy it again.")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if out_of_memory(error):
            raise
        raise damaged(path, error) from None
