"""`secateur export`: a checkpoint that was written, in another format."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig

from ..architecture.layered import layered_family, layered_shapes
from ..architecture.nested import whole_type
from ..architecture.stock import LAYERS_KEY
from ..config.formats import PADDED, STOCK, converter
from ..config.prune import ExportConfig
from ..models.files import tensor_places
from ..models.loading import load_config, load_model
from ..models.source import ModelSource
from ..models.stored import checkpoint_dtype
from ..models.tokenizers import code_of, load_tokenizer
from ..system.errors import InputError
from ..system.output import check_output
from .card import padded_card
from .comparing import compare, wide_of
from .export import ExportReport, build_small, round_, write_checkpoint
from .padding import padded_shape, padded_state
from .probe import default_probe
from .tokenizer_files import copied_files


def export_config(config: ExportConfig) -> ExportReport:
    """`secateur export`: a checkpoint in the format that the config names."""
    report: ExportReport = converter(config.format)(config)
    return report


def to_padded(config: ExportConfig) -> ExportReport:
    """A layered checkpoint, zero-padded to equal layers, as a stock one."""
    folder, output = Path(config.model), Path(config.output)
    check_output(output, overwrite=config.overwrite, model_folder=folder)
    if folder.suffix.lower() == ".gguf":
        raise InputError(f"--model {config.model}: layers of a GGUF file are alike: give the folder that prune wrote.")
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    source = ModelSource(config.model, config.model)
    old = load_config(source)
    sizes = old.to_dict().get(LAYERS_KEY)
    if not sizes:
        raise InputError(
            f"--model {config.model}: its layers are alike, so it is a stock checkpoint already: no padding needed."
        )
    family, shapes = layered_family(old), layered_shapes(old)
    state = _read_state(folder)
    dtype = checkpoint_dtype(old)
    layered = build_small(old, family, shapes, state.items(), wide_of(dtype), "keep")
    wide = padded_shape(old, family, shapes, config.model_class)
    alike = (wide,) * len(shapes)
    tensors = padded_state(state, family, shapes, wide)
    padded = build_small(old, family, alike, tensors, wide_of(dtype), config.model_class)
    if (folder / "generation_config.json").is_file():
        padded.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer = None if code_of(source.path) else load_tokenizer(source)  # its code is not run, its files go along
    ids = default_probe(tokenizer, old.get_text_config().vocab_size)
    merge = compare("the padded", padded, "the layered", layered, ids)
    round_(padded, dtype)

    def carry_card(made: Path, report: ExportReport) -> None:
        if tokenizer is None:
            copied_files(source.path, made)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else f"# {output.name}\n"
        text = padded_card(text, report.loads_with.replace(json.dumps(report.folder), json.dumps(output.name)))
        (made / "README.md").write_text(text, encoding="utf-8")

    return write_checkpoint(padded, family, output, PADDED, ids, tokenizer, merge, carry_card)


def to_text(config: ExportConfig) -> ExportReport:
    """`secateur export --format text`: the text model that lies in another one, as a checkpoint of its own."""
    folder = Path(config.model)
    check_output(Path(config.output), overwrite=config.overwrite, model_folder=folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    source = ModelSource(config.model, config.model)
    if not (whole := whole_type(load_config(source))):
        raise InputError(f"--model {config.model}: it is a text model already: leave --format text out.")
    if config.model_class != "keep":
        raise InputError(f"--model-class {config.model_class} goes with --format padded: leave it out.")
    model, tokenizer = load_model(source), load_tokenizer(source)
    ids = default_probe(tokenizer, model.config.vocab_size)

    def write_card(made: Path, report: ExportReport) -> None:
        text = (
            f"# {Path(config.output).name}\n\nThe text model of {Path(config.model).name}, a `{whole}`, as it was; "
            f"what reads pictures or sound is not in it. The licence is that of the whole model.\n\n"
            f"```python\n{report.loads_with}\n```\n"
        )
        (made / "README.md").write_text(text, encoding="utf-8")

    return write_checkpoint(model, None, Path(config.output), STOCK, ids, tokenizer, (0.0, 0.0), write_card)


def _read_state(folder: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors; whatever else lies in its folder is not read."""
    places = tensor_places(folder)
    state: dict[str, Tensor] = {}
    for path in sorted(set(places.values())):
        with safe_open(path, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return state
