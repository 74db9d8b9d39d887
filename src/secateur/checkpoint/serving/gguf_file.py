"""`secateur export --format gguf`: a checkpoint as a file for llama.cpp, checked by llama.cpp.

Its own converter writes the file and its own quantiser quantises it (`llama_cpp`). Layers that differ go into its
`deci` architecture, each in its own size, where that computes the same (`layouts`). Then llama.cpp reads a text, in a
process of its own, and its log-probabilities are held against those of transformers in float32.
"""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...architecture.config_faults import values_in
from ...architecture.gguf import head_of
from ...architecture.layered import layered_shapes
from ...architecture.nested import whole_type
from ...architecture.stock import LAYERS_KEY
from ...config.formats import GGUF, QUANTISATIONS
from ...config.prune import ExportConfig
from ...models.files import check_checkpoint
from ...models.loading import load_config, load_model
from ...models.source import ModelSource, resolve_model
from ...models.stored import checkpoint_dtype, stored_bytes
from ...models.tokenizers import load_tokenizer
from ...system.errors import InputError, VerificationError
from ...system.output import check_output_file
from ...system.progress import phase
from ..comparing import logits_of
from ..probe import default_probe
from .agreement import Agreement, GgufReport, agreement
from .importances import save_importances
from .layouts import check_depth, held_sizes, rotation_notes, sizes_beside_width
from .libllama import QUANTISE_WEIGHED
from .llama_cpp import CONVERT, LIBRARY, QUANTISE, READ, WHEELS, check_engine
from .making import LAYERED_CLASS, beside, put, read_logits, run_or_refuse, staged
from .vocabulary import add_sentencepiece
from .widths import check_widths

OUTTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f32"}
IMPORTANCES = "importances.npz"
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
MOST_KL = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.3}
"""Mean KL divergence (nats) of llama.cpp's predictions from transformers' in float32 that is allowed of each precision
before it is quantised further. f32 differs by the order of sums and by tables of activations (SmolLM2 pruned: 1e-10, a
tiny Gemma 3 with random weights: 3e-6); the others round what goes into each product, too (the same two: 3e-4 and 8e-3
in bf16, and 0.08 in q8_0 where channels were taken at random). A layer in a wrong place costs nats."""


Weigh = Callable[[PreTrainedModel], dict[str, Tensor]]
"""A model -> linear's name -> (columns,) mean square of what goes into it."""


def to_gguf(config: ExportConfig, weigh: Weigh | None = None) -> GgufReport:
    """Write a checkpoint's GGUF file, have llama.cpp read it, and only then put it in place.

    Args:
        weigh: with `--imatrix`, what the weights' columns are worth.
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
    notes = [*check_widths(config, model_config, outtype, sizes), *rotation_notes(model_config)]
    engine = check_engine(config.engine, WHEELS | LIBRARY if weigh else WHEELS)
    check_checkpoint(source)
    needed = _needed_bytes(source, model_config, outtype, config.quantise)
    with beside(output, needed) as work:
        made = work / "converted.gguf"
        folder = staged(source, model_config, work, sizes)
        add_sentencepiece(folder, engine, work, config.model)
        arguments = [str(folder), "--outtype", outtype]
        arguments += ["--outfile", str(made), "--model-name", output.stem]
        with phase("llama.cpp's converter writes the file"):
            written = held_sizes(sizes) if sizes else None
            task = {"arguments": arguments, "class": LAYERED_CLASS, "sizes": written, "given": sizes}
            run_or_refuse(engine, CONVERT, task, work, config.model)
        tokenizer = load_tokenizer(source)
        ids = default_probe(tokenizer, model_config.get_text_config().vocab_size)
        model = load_model(source, dtype="float32")
        expected = logits_of(model, ids)
        first, read = read_back(engine, made, ids, expected, tokenizer, work, config.model)
        if not first.kl <= MOST_KL[outtype]:
            raise VerificationError(
                f"{output}: llama.cpp predicts {first.kl:.3g} nats off what the checkpoint does (allowed in {outtype}: "
                f"{MOST_KL[outtype]:g}; log-probabilities differ by up to {first.largest:.3g}). Nothing was written."
            )
        last = first
        if config.quantise:
            if weigh:
                notes = [*notes, save_importances(weigh(model), made, work / IMPORTANCES)]
            made = _quantised(engine, made, config.quantise, work, config.model)
            last, read = read_back(engine, made, ids, expected, tokenizer, work, config.model)
        report = _report(output, made, config.quantise or outtype, (first, last), ids.shape[1], read, notes)
        put(made, output)
    return report


def _quantised(engine: str, converted: Path, name: str, work: Path, model: str) -> Path:
    """The file as llama.cpp's quantiser makes it; the one before goes."""
    made = work / "quantised.gguf"
    importances = work / IMPORTANCES
    task = {"source": str(converted), "target": str(made), "ftype": QUANTISATIONS[name].ftype}
    task |= {"threads": torch.get_num_threads(), "importances": str(importances)}
    with phase(f"llama.cpp quantises to {name}"):
        run_or_refuse(engine, QUANTISE_WEIGHED if importances.exists() else QUANTISE, task, work, model)
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


EIGHT_BITS = ("int-quantized", "mixed-precision")
"""compressed-tensors' names for linears whose inputs are rounded, too, and for several kinds in one file."""


def _check_source(source: ModelSource) -> None:
    if source.gguf_file:
        raise InputError(f"--model {source.name} is a GGUF file already: give the folder that prune wrote.")
    if not source.is_local:
        raise InputError(f"--model {source.name} is a hub id: download it and give its folder.")
    quantised = values_in(Path(source.path)).get("quantization_config") or {}
    if quantised.get("format") in EIGHT_BITS or len(quantised.get("config_groups") or ()) > 1:
        raise InputError(
            f"--model {source.name} is quantised already, in a way that llama.cpp has no file for (inputs are rounded, "
            "too, or its linears differ): give the checkpoint that it was made of, with --quantise Q8_0 or Q4_K_M."
        )


def _sizes(model_config: PreTrainedConfig, source: ModelSource) -> list[tuple[int, int, int]] | None:
    """(query heads, KV heads, channels) of each layer; None where llama.cpp has them alike."""
    check_depth(model_config, source.name)
    if not model_config.to_dict().get(LAYERS_KEY):
        return sizes_beside_width(model_config)
    return [shape.key() for shape in layered_shapes(model_config)]


def _needed_bytes(source: ModelSource, model_config: PreTrainedConfig, outtype: str, quantise: str | None) -> int:
    """About what lies beside the output for a while."""
    stored, bits = stored_bytes(source) or 0, 8 * checkpoint_dtype(model_config).itemsize
    return int(stored * BITS[outtype] / bits * (1.5 if quantise else 1.0))


def read_back(
    engine: str, file: Path, ids: Tensor, expected: Tensor, tokenizer: PreTrainedTokenizerBase, work: Path, model: str
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
        said = run_or_refuse(engine, READ, task, work, model)
    found = read_logits(logits, said["vocabulary"])
    return agreement(found, expected, ids), said["read"][0] == own
