"""`secateur export`: a checkpoint that was written, in another format."""

import json
from dataclasses import dataclass
from pathlib import Path

import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..architecture.families import Family
from ..architecture.layered import layered_family, layered_shapes
from ..architecture.layout import LayerShape, common_shape
from ..architecture.nested import whole_type
from ..architecture.stock import LAYERS_KEY
from ..config.formats import ADAPTER, PADDED, STOCK, VLLM, converter
from ..config.prune import ExportConfig
from ..models.adapter import CONFIG as ADAPTER_CONFIG
from ..models.files import tensor_places
from ..models.loading import load_config, load_model
from ..models.memory import LOAD_LESS, memory_for
from ..models.source import ModelSource
from ..models.stored import checkpoint_dtype
from ..models.tokenizers import code_of, load_tokenizer
from ..system.errors import InputError, VerificationError
from ..system.output import check_output
from ..system.progress import phase
from ..system.quiet import quiet_transformers
from .card import PADDED_SAYS, padded_card
from .comparing import MOST_KL, compare, compare_logits, in_precision, logits_of, wide_of
from .export import ExportReport, build_small, round_, write_checkpoint
from .padding import padded_shape, padded_state
from .probe import default_probe
from .serving.decilm import DECILM_SAYS, check_decilm, decilm_shapes
from .serving.engines import VLLM_ENGINE, serving_block
from .tokenizer_files import copied_files
from .verify import TOLERANCE


def export_config(config: ExportConfig) -> ExportReport | str:
    """`secateur export`: a checkpoint in the format that the config names; of an adapter, what there is to say.

    Raises:
        InputError: an adapter, and a format of checkpoints.
    """
    folder = Path(config.model).expanduser()
    if config.format != ADAPTER and (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"--model {config.model} is a LoRA adapter, not a checkpoint: --format {ADAPTER} writes it for servers "
            "(--output X.gguf for llama.cpp). For its model as one checkpoint train it with secateur adapt --merge."
        )
    report: ExportReport | str = converter(config.format)(config)
    return report


@dataclass(frozen=True, eq=False)
class Layered:
    """A checkpoint with layers that differ, which is to be written in another form."""

    source: ModelSource
    config: PreTrainedConfig
    family: Family
    shapes: tuple[LayerShape, ...]


def to_padded(config: ExportConfig) -> ExportReport:
    """A layered checkpoint, zero-padded to equal layers, as a stock one."""
    given = open_layered(config, "so it is a stock checkpoint already: no padding needed")
    wide = padded_shape(given.config, given.family, given.shapes, config.model_class)
    return widened(config, given, (wide,) * len(given.shapes), PADDED, PADDED_SAYS)


def to_decilm(config: ExportConfig) -> ExportReport:
    """A layered checkpoint in DeciLM's form, which transformers reads with the modelling file beside it.

    Raises:
        InputError: a stock checkpoint; a family that DeciLM's class computes otherwise.
    """
    given = open_layered(config, f"so vLLM takes it as it is: {VLLM_ENGINE.started_with(config.model, STOCK)}")
    if config.model_class != "keep":
        raise InputError(f"--model-class {config.model_class} goes with --format {PADDED}: leave it out.")
    check_decilm(given.config, config.model)
    wide = decilm_shapes(given.config, given.family, given.shapes)
    if common_shape(wide):
        raise InputError(f"--model {config.model}: with attention padded its layers are alike: use --format {PADDED}.")
    return widened(config, given, wide, VLLM, DECILM_SAYS)


def open_layered(config: ExportConfig, otherwise: str) -> Layered:
    """What `--model` is, whose output is known to be free.

    Args:
        otherwise: what is said of layers that are alike, after that.
    Raises:
        InputError: no such checkpoint, or its layers are alike.
    """
    folder = Path(config.model)
    check_output(Path(config.output), overwrite=config.overwrite, model_folder=folder)
    if folder.suffix.lower() == ".gguf":
        raise InputError(f"--model {config.model}: layers of a GGUF file are alike: give the folder that prune wrote.")
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    source = ModelSource(config.model, config.model)
    old = load_config(source)
    if not old.to_dict().get(LAYERS_KEY):
        raise InputError(f"--model {config.model}: its layers are alike, {otherwise}.")
    return Layered(source, old, layered_family(old), layered_shapes(old))


def widened(config: ExportConfig, given: Layered, wide: tuple[LayerShape, ...], format: str, says: str) -> ExportReport:
    """Write a layered checkpoint with zeros in its layers, which computes the same.

    Args:
        wide: a shape for each layer that holds its own.
        says: of the form, in its card.
    """
    folder, output, dtype = Path(config.model), Path(config.output), checkpoint_dtype(given.config)
    state = _read_state(folder)
    layered = build_small(given.config, given.family, given.shapes, state.items(), wide_of(dtype), "keep")
    tensors = padded_state(state, given.family, given.shapes, wide)
    padded = build_small(given.config, given.family, wide, tensors, wide_of(dtype), config.model_class)
    if (folder / "generation_config.json").is_file():
        padded.generation_config = GenerationConfig.from_pretrained(folder)
    # The tokenizer's own code is not run, its files go along.
    tokenizer = None if code_of(given.source.path) else load_tokenizer(given.source)
    ids = default_probe(tokenizer, given.config.get_text_config().vocab_size)
    merge = compare("the padded", padded, "the layered", layered, ids)
    round_(padded, dtype)

    def carry_card(made: Path, report: ExportReport) -> None:
        if tokenizer is None:
            copied_files(given.source.path, made)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else f"# {output.name}\n"
        loads_with = report.loads_with.replace(json.dumps(report.folder), json.dumps(output.name))
        text = padded_card(text, loads_with, serving_block(report.to_dict()), says)
        (made / "README.md").write_text(text, encoding="utf-8")

    return write_checkpoint(padded, given.family, output, format, ids, tokenizer, merge, carry_card)


def to_text(config: ExportConfig) -> ExportReport:
    """`secateur extract-text` and `export --format text`: the text model that lies in another one, as a checkpoint of
    its own, which computes what the whole does of text.

    Raises:
        InputError: a text model; one whose whole transformers cannot load.
        VerificationError: it computes something else.
    """
    folder = Path(config.model)
    check_output(Path(config.output), overwrite=config.overwrite, model_folder=folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    source = ModelSource(config.model, config.model)
    if not (whole := whole_type(load_config(source))):
        raise InputError(f"--model {config.model}: it is a text model already.")
    if config.model_class != "keep":
        raise InputError(f"--model-class {config.model_class} goes with --format padded: leave it out.")
    model, tokenizer = load_model(source), load_tokenizer(source)
    ids = default_probe(tokenizer, model.config.vocab_size)
    merge = compare_with_whole(source, model, ids)

    def write_card(made: Path, report: ExportReport) -> None:
        text = (
            f"# {Path(config.output).name}\n\nThe text model of {Path(config.model).name}, a `{whole}`, as it was; "
            f"what reads pictures or sound is not in it. The licence is that of the whole model.\n\n"
            f"```python\n{report.loads_with}\n```\n"
        )
        (made / "README.md").write_text(text, encoding="utf-8")

    return write_checkpoint(model, None, Path(config.output), STOCK, ids, tokenizer, merge, write_card)


def compare_with_whole(source: ModelSource, text: PreTrainedModel, ids: Tensor) -> tuple[float, float]:
    """Mean KL (nats) of a text model from the whole that it lies in, given text alone, and the largest |Δlogit|; in
    float32 at least.

    Args:
        ids: (1, tokens)
    Raises:
        InputError: transformers has no class for the whole, or none that takes text alone.
        VerificationError: they compute different things.
    """
    config = AutoConfig.from_pretrained(source.path)
    whole_class = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    if whole_class is None:
        raise InputError(
            f"--model {source.name}: transformers has no {config.architectures} to compare its text model with: name "
            "the class in config.json (architectures), or update transformers."
        )
    dtype = wide_of(text.dtype)
    with phase("loading the whole model"), memory_for("loading the whole model", LOAD_LESS), quiet_transformers():
        whole = whole_class.from_pretrained(source.path, dtype=text.dtype, use_safetensors=True).eval()
    try:
        with in_precision(whole, dtype):
            expected = logits_of(whole, ids)
    except (TypeError, ValueError) as error:  # an argument is missing, or its embeddings
        raise InputError(
            f"--model {source.name}: a {config.model_type} computes nothing of text alone "
            f"({' '.join(str(error).split())[:200]}), so its text model cannot be compared with it: give it to prune "
            "without --extract-text."
        ) from None
    del whole
    with in_precision(text, dtype):
        found = logits_of(text, ids)
    off = float((found.double() - expected.double()).abs().max())
    if not off <= TOLERANCE[dtype] * float(expected.abs().max()):
        raise VerificationError(
            f"--model {source.name}: its text model alone computes other logits than the whole {config.model_type} of "
            f"the same text ({off:.3g} off): the two classes of transformers differ, so it is not taken out."
        )
    return compare_logits("the text", found, "the whole", expected, MOST_KL[dtype])


def _read_state(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; whatever else lies in its folder is not read."""
    places = tensor_places(folder)
    state: dict[str, Tensor] = {}
    for path in sorted(set(places.values())):
        with safe_open(path, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return state
