"""Writing the small model: stock where layers are alike, layered or padded where they differ; always verified."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.building import brings_code, check_from_transformers, untied_
from ..architecture.depth import kept_layers, without_layers
from ..architecture.families import Family
from ..architecture.layered import code_map, layer_sizes, layered_class
from ..architecture.layout import LayerShape, common_shape
from ..architecture.quantised import is_quantised
from ..architecture.stock import FAMILY_KEY, LAYERS_KEY, OWN_HEAD, accepts, auto_class, resized_config, stock_class_of
from ..architecture.units import Units
from ..config.formats import FORMATS, LAYERED, STOCK, VLLM, convertible
from ..models.benchmark import parameter_count
from ..models.devices import without_autocast
from ..models.files import checkpoint_bytes
from ..models.surgery import merged_and_sliced
from ..parallel.sharding import is_sharded
from ..system.errors import InputError
from ..system.output import check_output, replaced_whole
from ..system.quiet import quiet_transformers
from ..system.voice import speaks_python
from .card import plain_card
from .comparing import compare, in_precision, logits_of, wide_of
from .older_readers import add_older_keys
from .serving.engines import serving
from .serving.layers import decilm_state, write_decilm, write_layers
from .tokenizer_files import WrittenTokenizer, write_tokenizer
from .verify import Check, verify, weights_checksum


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked."""

    folder: str
    format: str
    """Of `FORMATS`, or `adapter`."""
    model_class: str
    parameters: int
    bytes: int
    max_logit_difference: float
    """Fresh process against memory, on real text."""
    merge_kl: float
    """Mean KL (nats) of the merged, sliced model from the one that was trained."""
    merge_difference: float
    """Largest |Δlogit| between the same two."""
    loads_with: str
    serves_with: dict[str, str] = field(default_factory=dict)
    """Engine that is known to take such a result -> the command."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Finish = Callable[[Path, ExportReport], None]


@speaks_python()
@without_autocast()
def export_checkpoint(
    model: nn.Module,
    units: Units,
    keep: dict[str, Tensor],
    output: Path,
    *,
    probe_ids: Tensor,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_class: str = "keep",
    overwrite: bool = False,
    finish: Finish | None = None,
    before: Callable[[], None] = lambda: None,
) -> ExportReport:
    """Merge, slice, write, read back in a fresh process, and only then put the folder in place.

    Args:
        model: the trained PEFT model (or a plain one); not changed.
        keep: pool name -> (units,) bool; what stays.
        probe_ids: (1, tokens) of real text, at least 17.
        dtype: precision of the checkpoint.
        finish: called with the verified temporary folder, to put records beside the weights.
        before: called just before the folder is put in place; what it raises keeps it away.
    Raises:
        InputError: the output cannot be written, or no stock config takes the sizes.
        VerificationError: what was read back does not compute what was trained.
    """
    if is_quantised(model):
        raise InputError("the base is quantised: pruner.restore(source) puts the original weights in its place first.")
    if any(map(is_sharded, model.modules())):
        raise InputError("the base is sharded: call secateur.checkpoint.export_streamed, in every process.")
    check_output(output, overwrite=overwrite)
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    shapes = units.shapes_after(keep)
    tensors = merged_and_sliced(model, units, keep)
    small = build_small(base.config, units.family, shapes, tensors, wide_of(dtype), model_class)
    small.generation_config = base.generation_config
    with in_precision(model, wide_of(dtype)):
        merge = compare("the merged", small, "the trained", model, probe_ids)
    round_(small, dtype)
    layered = LAYERS_KEY in small.config.to_dict()
    format = LAYERED if layered else STOCK

    def done(folder: Path, report: ExportReport) -> None:
        (finish or partial(_write_card, base))(folder, report)
        before()

    return write_checkpoint(small, units.family, output, format, probe_ids, tokenizer, merge, done)


def _write_card(base: PreTrainedModel, folder: Path, report: ExportReport) -> None:
    """The model card of what no run's records describe."""
    name = str(base.config._name_or_path)
    place = Path(name) if name and Path(name).is_dir() else None
    what = f"Its format is `{report.format}`; what was trained, and on which data, is not recorded here."
    loads = report.loads_with.replace(json.dumps(report.folder), json.dumps(Path(report.folder).name))
    card = plain_card(name, report.parameters, what, loads, place)
    (folder / "README.md").write_text(card, encoding="utf-8")


def small_class(
    config: PreTrainedConfig, family: Family, shapes: tuple[LayerShape, ...], model_class: str
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Class and config of a model of the given layer shapes: stock where they are alike, else layered."""
    kept = kept_layers(shapes)
    if len(kept) < len(shapes):
        config, shapes = without_layers(config, kept), tuple(shapes[number] for number in kept)
    alike = common_shape(shapes, family)
    if family.ffn_listed:
        new_config = resized_config(config, family, shapes[0], model_class, [shape.ffn for shape in shapes])
        cls = stock_class_of(new_config)
    elif alike and (model_class != "keep" or family.alike_only or accepts(config, family, alike)):
        new_config = resized_config(config, family, alike, model_class)
        cls = stock_class_of(new_config)
    else:
        if model_class != "keep":
            others = " or ".join(name for name in convertible(of_pruned=True) if not FORMATS[name].engine)
            raise InputError(
                f"--model-class {model_class}: layers that differ need their own modelling file, which keeps the "
                f"class: use it with --allocation uniform, or with export --format {others}."
            )
        check_from_transformers(config)
        new_config = resized_config(config, family, None)
        setattr(new_config, LAYERS_KEY, layer_sizes(shapes, family))
        cls = layered_class(new_config, family)
        if family.name != config.model_type:
            setattr(new_config, FAMILY_KEY, family.name)
        new_config.auto_map = code_map(new_config)
    new_config.use_cache = True
    return cls, new_config


def build_small(
    config: PreTrainedConfig,
    family: Family,
    shapes: tuple[LayerShape, ...],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    model_class: str,
) -> PreTrainedModel:
    """A model of the given layer shapes in memory."""
    cls, new_config = small_class(config, family, shapes, model_class)
    new_config.dtype = dtype
    # The random start is overwritten; a training loop that goes on after an export must not notice it.
    with torch.random.fork_rng(devices=[]):
        small = cls._from_config(new_config, dtype=dtype)
    _fill_(small, family, tensors)
    return small.eval()


def round_(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the parameters to a checkpoint's precision; buffers (rotary frequencies) keep theirs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _fill_(small: PreTrainedModel, family: Family, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy every tensor into place, one at a time: the merged ones may lie on a full accelerator."""
    places = small.state_dict()
    absent, unfit = set(places), []
    for name, tensor in tensors:
        if small.config.is_encoder_decoder and untied_(small, name, tensor):
            places = small.state_dict()
        if name in places and places[name].shape == tensor.shape:
            places[name].copy_(tensor)
        else:
            unfit.append(f"{name} {tuple(tensor.shape)}")
        absent.discard(name)
    # A file holds tied weights once; the model has them under both names.
    absent -= set(small.all_tied_weights_keys)
    if absent or unfit:
        raise InputError(
            f"the tensors do not fit a {type(small).__name__}: missing {sorted(absent)[:3]}, unexpected or of another "
            f"size {unfit[:3]}: the checkpoint is damaged or does not follow the {family.name} layout."
        )


def write_checkpoint(
    small: PreTrainedModel,
    family: Family | None,
    output: Path,
    format: str,
    probe_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    merge: tuple[float, float],
    finish: Finish | None,
) -> ExportReport:
    """Save, read back in a fresh process, let the caller add records, put in place.

    Args:
        family: of a layered checkpoint, whose modelling file follows it.
        merge: what `compare` found before rounding.
    """
    layered = FORMATS[format].trust
    runs_code = layered or brings_code(type(small))
    with replaced_whole(output, sum(p.numel() * p.element_size() for p in small.parameters())) as folder:
        state = decilm_state(small, family) if format == VLLM and family else None
        save_model(small, folder, family if layered else None, state)
        beside = write_tokenizer(tokenizer, folder) if tokenizer is not None else None
        if format == VLLM:  # a model type whose configuration is code, which reading a tokenizer would ask for
            write_decilm(folder, small.config)
        check = Check(
            folder,
            probe_ids,
            logits_of(small, probe_ids),
            parameter_count(small),
            remote_code=runs_code,
            checksum=weights_checksum(small),
            tokenizer=beside.to_dict() if beside else None,
        )
        (verified,) = verify([check])
        report = ExportReport(
            folder=str(output),
            format=format,
            model_class=verified.class_name,
            parameters=check.parameters,
            bytes=checkpoint_bytes(folder),
            max_logit_difference=verified.difference,
            merge_kl=merge[0],
            merge_difference=merge[1],
            loads_with=loads_with(output, small.config, runs_code, beside),
            serves_with=serving(output, small.config, format) if layered or not runs_code else {},
        )
        if finish is not None:
            finish(folder, report)
    return report


def save_model(
    small: PreTrainedModel, folder: Path, family: Family | None, state: dict[str, Tensor] | None = None
) -> None:
    """Config, safetensors (of `state` alone) and generation settings; of a layered checkpoint, which has a `family`,
    the modelling file. A failed write is an OSError whichever library met it."""
    settings = small.generation_config
    vars(small.config).pop(OWN_HEAD, None)  # others see it in the files
    # save_pretrained refuses settings that contradict each other, and well-known checkpoints ship such (Vicuna:
    # temperature without do_sample). They load, so they are handed on as they are.
    small.generation_config = GenerationConfig()
    try:
        with quiet_transformers():
            small.save_pretrained(folder, state_dict=state)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        small.generation_config = settings
    settings.to_json_file(folder / "generation_config.json")
    add_older_keys(folder)
    if family is not None:
        write_layers(folder, small.config, family)


def loads_with(
    output: Path | str, config: PreTrainedConfig, trusts: bool, tokenizer: WrittenTokenizer | None = None
) -> str:
    """Python that reads a checkpoint back."""
    trust = ", trust_remote_code=True" if trusts else ""
    own = ", trust_remote_code=True" if tokenizer and tokenizer.trust else ""
    reader = tokenizer.reader if tokenizer else "AutoTokenizer"
    auto = auto_class(config).__name__
    return (
        f"from transformers import {auto}, {reader}\n"
        f"model = {auto}.from_pretrained({json.dumps(str(output))}{trust})\n"
        f"tokenizer = {reader}.from_pretrained({json.dumps(str(output))}{own})"
    )
