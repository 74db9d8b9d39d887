"""`secateur export --format gguf`: a checkpoint as a file for llama.cpp, checked by llama.cpp.

Its own converter writes the file and its own quantiser quantises it (`llama_cpp`). Layers that differ go into its
`deci` architecture, each in its own size, where that computes the same (`layouts`). Then llama.cpp reads a text, in a
process of its own, and its log-probabilities are held against those of transformers in float32.
"""

import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ...architecture.gguf import head_of
from ...architecture.layered import layered_family, layered_shapes
from ...architecture.nested import whole_type
from ...architecture.stock import LAYERS_KEY, head_dim_of
from ...config.formats import GGUF, QUANTISATIONS, SMALL_BLOCK
from ...config.prune import ExportConfig
from ...models.files import check_checkpoint
from ...models.loading import load_config, load_model
from ...models.source import ModelSource, resolve_model
from ...models.stored import checkpoint_dtype, stored_bytes
from ...models.tokenizers import load_tokenizer, settings_of
from ...system.errors import InputError, SecateurError, VerificationError, disk_is_full
from ...system.finished import lands
from ...system.output import check_output_file, link_or_copy, passing_folder, room_words
from ...system.progress import megabytes, phase
from ..comparing import logits_of
from ..probe import default_probe
from .agreement import Agreement, GgufReport, agreement
from .layouts import check_depth
from .llama_cpp import CONVERT, QUANTISE, READ, EngineError, check_engine, run_engine

LAYERED_CLASS = "SecateurLayersForCausalLM"
"""What the converter is told that a model with layers that differ is."""
OUTTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f32"}
OURS = ("auto_map", "_name_or_path", "_model_name_or_path", "per_layer_config")
"""Keys of config.json that are not the converter's business: code, and names that would go into the file."""
FILES_OWN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that are what tokenizer.json says, and nothing more."""
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
MOST_KL = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.3}
"""Mean KL divergence (nats) of llama.cpp's predictions from transformers' in float32 that is allowed of each precision
before it is quantised further. f32 differs by the order of sums and by tables of activations (SmolLM2 pruned: 1e-10, a
tiny Gemma 3 with random weights: 3e-6); the others round what goes into each product, too (the same two: 3e-4 and 8e-3
in bf16, and 0.08 in q8_0 where channels were taken at random). A layer in a wrong place costs nats."""


def to_gguf(config: ExportConfig) -> GgufReport:
    """Write a checkpoint's GGUF file, have llama.cpp read it, and only then put it in place.

    Raises:
        InputError: an output, an engine or a model that cannot be; what llama.cpp refuses, in its words.
        VerificationError: the file does not predict what the checkpoint does.
    """
    output = Path(config.output)
    if output.suffix.lower() != ".gguf":
        raise InputError(f"--output {output}: --format gguf writes one file: give it a name that ends with .gguf.")
    check_output_file("--output", output, overwrite=config.overwrite, inputs={"--model": config.model})
    source = resolve_model(config.model)
    _check_source(source)
    model_config = load_config(source)
    if whole := whole_type(model_config):
        raise InputError(
            f"model {config.model!r} is a {whole}, which holds its text model beside others: write that one first "
            "(secateur extract-text), then its GGUF file."
        )
    sizes = _sizes(model_config, source)
    outtype = config.outtype or OUTTYPE[checkpoint_dtype(model_config)]
    notes = _check_widths(config, model_config, outtype, sizes)
    engine = check_engine(config.engine)
    check_checkpoint(source)
    needed = _needed_bytes(source, model_config, outtype, config.quantise)
    with _beside(output, needed) as work:
        made = work / "converted.gguf"
        arguments = [str(_staged(source, model_config, work, sizes)), "--outtype", outtype]
        arguments += ["--outfile", str(made), "--model-name", output.stem]
        with phase("llama.cpp's converter writes the file"):
            _run(engine, CONVERT, {"arguments": arguments, "class": LAYERED_CLASS, "sizes": sizes}, work, config.model)
        tokenizer = load_tokenizer(source)
        ids = default_probe(tokenizer, model_config.get_text_config().vocab_size)
        expected = logits_of(load_model(source, dtype="float32"), ids)
        first, read = _read_back(engine, made, ids, expected, tokenizer, work)
        if not first.kl <= MOST_KL[outtype]:
            raise VerificationError(
                f"{output}: llama.cpp predicts {first.kl:.3g} nats off what the checkpoint does (allowed in {outtype}: "
                f"{MOST_KL[outtype]:g}; log-probabilities differ by up to {first.largest:.3g}). Nothing was written."
            )
        last = first
        if config.quantise:
            made = _quantised(engine, made, config.quantise, work, config.model)
            last, read = _read_back(engine, made, ids, expected, tokenizer, work)
        report = _report(output, made, config.quantise or outtype, (first, last), ids.shape[1], read, notes)
        made.chmod(0o666 & ~_umask())
        lands(made, output)
        os.replace(made, output)
    return report


def _quantised(engine: str, converted: Path, name: str, work: Path, model: str) -> Path:
    """The file as llama.cpp's quantiser makes it; the one before goes."""
    made = work / "quantised.gguf"
    task = {"source": str(converted), "target": str(made), "ftype": QUANTISATIONS[name].ftype}
    with phase(f"llama.cpp quantises to {name}"):
        _run(engine, QUANTISE, task | {"threads": torch.get_num_threads()}, work, model)
    converted.unlink()
    return made


def _report(
    output: Path,
    made: Path,
    weights: str,
    found: tuple[Agreement, Agreement],
    tokens: int,
    read: bool,
    notes: list[str],
) -> GgufReport:
    head = head_of(made)
    shapes = {name: shape for name, (_, shape) in head.places.items()}
    types = Counter(GGMLQuantizationType(kind).name for name, kind in head.kinds.items() if len(shapes[name]) > 1)
    return GgufReport(
        folder=str(output),
        format=GGUF,
        architecture=head.architecture,
        types=dict(types.most_common()),
        parameters=sum(map(math.prod, shapes.values())),
        bytes=made.stat().st_size,
        weights=weights,
        converted=found[0],
        agreement=found[1],
        tokens=tokens,
        read_alike=read,
        notes=tuple(notes),
    )


def _check_source(source: ModelSource) -> None:
    if source.gguf_file:
        raise InputError(f"--model {source.name} is a GGUF file already: give the folder that prune wrote.")
    if not source.is_local:
        raise InputError(f"--model {source.name} is a hub id: download it and give its folder.")


def _sizes(model_config: PreTrainedConfig, source: ModelSource) -> list[tuple[int, int, int]] | None:
    """(query heads, KV heads, channels) of each layer; None where they are alike."""
    check_depth(model_config, source.name)
    if not model_config.to_dict().get(LAYERS_KEY):
        return None
    return [shape.key() for shape in layered_shapes(model_config)]


def _check_widths(
    config: ExportConfig, model_config: PreTrainedConfig, outtype: str, sizes: list[tuple[int, int, int]] | None
) -> list[str]:
    """What becomes of rows that the quantisation cannot divide.

    Raises:
        InputError: it divides none of the model's.
    """
    if not config.quantise and outtype != "q8_0":
        return []
    name = config.quantise or "Q8_0"
    kind = QUANTISATIONS[name]
    text = model_config.get_text_config()
    hidden = int(text.hidden_size)
    if hidden % SMALL_BLOCK:
        raise InputError(
            f"{'--quantise ' + config.quantise if config.quantise else '--outtype ' + outtype}: llama.cpp quantises "
            f"rows in blocks of {SMALL_BLOCK}, and the model is {hidden} wide: write --outtype bf16 or f16."
        )
    widths = {size[2] for size in sizes} if sizes else {getattr(text, "intermediate_size", None)}
    found = sorted(w for w in {hidden, *widths} if isinstance(w, int) and w % kind.block)
    if not found:
        return []
    small = [w for w in found if w % SMALL_BLOCK == 0]
    odd = [w for w in found if w % SMALL_BLOCK]
    words = []
    if small:
        words.append(f"rows of {_some(small)} are {kind.instead} (no multiple of {kind.block})")
    if odd:
        words.append(f"rows of {_some(odd)} are F16 (no multiple of {SMALL_BLOCK}: prune with --round-to 32 or 256)")
    return [f"{name}: llama.cpp takes another type where it cannot divide: {'; '.join(words)}"]


def _some(widths: list[int]) -> str:
    return ", ".join(map(str, widths[:4])) + (f" and {len(widths) - 4} other widths" if len(widths) > 4 else "")


def _needed_bytes(source: ModelSource, model_config: PreTrainedConfig, outtype: str, quantise: str | None) -> int:
    """About what lies beside the output for a while."""
    stored, bits = stored_bytes(source) or 0, 8 * checkpoint_dtype(model_config).itemsize
    return int(stored * BITS[outtype] / bits * (1.5 if quantise else 1.0))


@contextmanager
def _beside(output: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside the output for what is made, which goes afterwards.

    Raises:
        InputError: there is no room.
    """
    parent = output.absolute().parent
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise InputError(
            f"--output {output}: the file needs about {megabytes(needed_bytes)} while it is made and {parent} has "
            f"{megabytes(free)} free: make room, or choose another place."
        )
    try:
        with passing_folder(f".{output.name}.secateur-", parent) as work:
            yield work
    except SecateurError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise InputError(
            f"--output {output} could not be written: no space left on device ({room_words(parent, needed_bytes)}). "
            "What was there before is untouched."
        ) from error


def _staged(
    source: ModelSource, model_config: PreTrainedConfig, work: Path, sizes: list[tuple[int, int, int]] | None
) -> Path:
    """The checkpoint's files under their names, with a config.json that says what the converter must know of it."""
    folder = work / "model"
    folder.mkdir()
    for path in Path(source.path).absolute().iterdir():
        if path.is_file() and path.suffix != ".py" and not path.name.startswith(("config.json", "adapter_")):
            link_or_copy(path, folder / path.name)
    values = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
    if settings_of(source.path).get("tokenizer_class") in FILES_OWN:
        # of some model types transformers would build a tokenizer of the type's own class from the file's vocabulary
        values.pop("rope_scaling", None)  # the older form of rope_parameters, for which it has no class to ask
        values |= json.loads(model_config.to_json_string(use_diff=False)) | {"model_type": "secateur"}
    values = {key: value for key, value in values.items() if key not in OURS and not key.startswith("secateur_")}
    if sizes:
        values["architectures"] = [LAYERED_CLASS]
        values["head_dim"] = head_dim_of(model_config, layered_family(model_config))
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def _run(engine: str, script: str, task: dict[str, Any], work: Path, model: str) -> Any:
    """`run_engine`, whose refusals are a user's business."""
    try:
        return run_engine(engine, script, task, work)
    except EngineError as error:
        words = str(error).rstrip(".")
        if script is CONVERT:
            raise InputError(
                f"model {model!r}: llama.cpp's converter does not take it ({words}). Its wheel may be older than the "
                "model's family, or llama.cpp does not have the family or its tokenizer: serve it with transformers."
            ) from None
        raise InputError(
            f"model {model!r}: llama.cpp does not take the file ({words}): try another --outtype."
        ) from None


def _read_back(
    engine: str, file: Path, ids: Tensor, expected: Tensor, tokenizer: PreTrainedTokenizerBase, work: Path
) -> tuple[Agreement, bool]:
    """What llama.cpp predicts on `ids`, beside what transformers does; and whether it reads their text as those."""
    logits = work / "logits.bin"
    text = tokenizer.decode(ids[0])
    own = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    task = {
        "model": str(file),
        "ids": ids[0].tolist(),
        "threads": torch.get_num_threads(),
        "logits": str(logits),
        "texts": [text],
    }
    with phase("llama.cpp reads the file and predicts"):
        said = _run(engine, READ, task, work, file.parent.name)
    values = array("f")
    with logits.open("rb") as opened:
        values.frombytes(opened.read())
    logits.unlink()
    found = torch.tensor(values).view(1, ids.shape[1], said["vocabulary"])
    return agreement(found, expected, ids), said["read"][0] == own


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
