"""Writing a small model from a large one without ever holding it whole: tensor by tensor, file by file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.families import Family
from ..architecture.quantised import is_quantised
from ..architecture.stock import LAYERS_KEY
from ..architecture.units import Units
from ..config.formats import LAYERED, STOCK
from ..models.files import checkpoint_bytes
from ..models.source import ModelSource
from ..models.surgery import merged_and_sliced
from ..parallel.distributed import barrier
from ..parallel.sharding import is_sharded
from ..system.errors import InputError
from ..system.launcher import rank
from ..system.output import check_output, replaced_whole
from ..system.voice import speaks_python
from .comparing import logits_of, most_kl_of
from .export import ExportReport, Finish, loads_with, small_class
from .older_readers import add_older_keys
from .serving.engines import serving
from .serving.layers import write_layers
from .shards import Sides, merged_from_shards
from .tokenizer_files import WrittenTokenizer, write_tokenizer
from .verify import Check, tensor_checksum, verify

FILE_BYTES = 10**9
"""Of one safetensors file: what is held at most, beside the tensor at hand."""


@speaks_python()
def export_streamed(
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
    file_bytes: int = FILE_BYTES,
    source: ModelSource | None = None,
    live: Sides | None = None,
    trust: bool = False,
    finish: Finish | None = None,
) -> ExportReport | None:
    """As `export_checkpoint`, without the small model in memory; under sharding every process must call it.

    The fresh process compares all weights with what was written, by checksum, and its logits with the trained model's
    own, so what merging and rounding change is within its tolerance (`verify.GREEDY_TOLERANCE`), not apart from it. A
    quantised base has other logits: they are compared by `QUANTISED_KL`.

    Args:
        file_bytes: most bytes of one file, and of what waits for it in memory.
        source: read the frozen weights from this checkpoint, one tensor at a time, rather than from `model`, whose
            base may then be quantised. Of a model that is not sharded the first process alone calls this.
        live: with `source`, what `model` has left of it where it was sliced while it trained (`surgery.removals`).
        finish: called with the verified temporary folder, to put records beside the weights.
    Returns:
        the report in the first process, None in the others.
    """
    if is_quantised(model) and source is None:
        raise InputError("the base is quantised: name the checkpoint it was made from (source=).")
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    cls, config = small_class(base.config, units.family, units.shapes_after(keep), model_class)
    config.architectures, config.dtype = [cls.__name__], dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    logits = logits_of(model, probe_ids)
    with torch.device("meta"):
        skeleton = cls._from_config(config, dtype=dtype)
    if source is None:
        tensors = merged_and_sliced(model, units, keep)
    else:
        names = _stored_names(skeleton)
        tensors = merged_from_shards(names, model, units, keep, live or {}, source, trust=trust)
    if rank() > 0:
        for _ in tensors:  # gathering a tensor takes all processes
            pass
        barrier()
        return None
    check_output(output, overwrite=overwrite)
    with replaced_whole(output, sum(p.numel() * p.element_size() for p in skeleton.parameters())) as folder:
        checksum = _write_tensors(tensors, skeleton, folder, dtype, file_bytes)
        beside = _write_beside(folder, config, base.generation_config, units.family, tokenizer)
        expected = probe_ids, logits.to(dtype), most_kl_of(model)
        report = _read_back(folder, output, skeleton, checksum, expected, beside)
        if finish is not None:
            finish(folder, report)
    if source is None or any(map(is_sharded, model.modules())):
        barrier()
    return report


def _read_back(
    folder: Path,
    output: Path,
    skeleton: PreTrainedModel,
    checksum: int,
    expected: tuple[torch.Tensor, torch.Tensor, float | None],
    tokenizer: WrittenTokenizer | None,
) -> ExportReport:
    """What a fresh process finds in `folder`, which is to become `output`.

    Args:
        expected: tokens, the logits that are to come of them, and how far these may be off (`Check.most_kl`).
    Raises:
        VerificationError: other weights, or logits that are too far off.
    """
    config, parameters = skeleton.config, sum(parameter.numel() for parameter in skeleton.parameters())
    layered = LAYERS_KEY in config.to_dict()
    probe_ids, logits, most_kl = expected
    check = Check(
        folder, probe_ids, logits, parameters, remote_code=layered, merged_here=False, checksum=checksum,
        most_kl=most_kl, tokenizer=tokenizer.to_dict() if tokenizer else None,
    )  # fmt: skip
    (verified,) = verify([check])
    return ExportReport(
        folder=str(output),
        format=LAYERED if layered else STOCK,
        model_class=verified.class_name,
        parameters=parameters,
        bytes=checkpoint_bytes(folder),
        max_logit_difference=verified.difference,
        merge_kl=float("nan"),
        merge_difference=float("nan"),
        loads_with=loads_with(output, config, layered, tokenizer),
        serves_with=serving(output, config, LAYERED if layered else STOCK),
    )


def _stored_names(skeleton: PreTrainedModel) -> list[str]:
    """Names of a model's tensors in their order, tied ones once."""
    tied = set(skeleton.all_tied_weights_keys)
    return [name for name in skeleton.state_dict() if name not in tied]


def _write_beside(
    folder: Path,
    config: PreTrainedConfig,
    generation_config: GenerationConfig | None,
    family: Family,
    tokenizer: PreTrainedTokenizerBase | None,
) -> WrittenTokenizer | None:
    """All of a checkpoint but its weights: configs, code where layers differ, the tokenizer."""
    config.save_pretrained(folder)
    add_older_keys(folder)
    (generation_config or GenerationConfig()).to_json_file(folder / "generation_config.json")
    if LAYERS_KEY in config.to_dict():
        write_layers(folder, config, family)
    return write_tokenizer(tokenizer, folder) if tokenizer is not None else None


def _write_tensors(
    tensors: Iterable[tuple[str, Tensor]], skeleton: PreTrainedModel, folder: Path, dtype: torch.dtype, most: int
) -> int:
    """Safetensors files of at most `most` bytes (or one tensor), and their index; -> their `weights_checksum`."""
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    tied = set(skeleton.all_tied_weights_keys)
    places: dict[str, int] = {}
    waiting: dict[str, Tensor] = {}
    files = total = held = checksum = 0
    parameters = {name for name, _ in skeleton.named_parameters()}
    for name, tensor in tensors:
        if shapes.get(name) != tensor.shape:
            raise InputError(f"{name} {tuple(tensor.shape)} does not fit a {type(skeleton).__name__}.")
        if name in tied:
            continue  # a file holds it once, under its other name
        value = tensor.to(dtype).cpu().contiguous().clone()
        if name in parameters:
            checksum ^= tensor_checksum(name, value)
        size = value.numel() * value.element_size()
        if waiting and held + size > most:
            _save(waiting, folder, files)
            files, held, waiting = files + 1, 0, {}
        waiting[name], places[name] = value, files
        held, total = held + size, total + size
    if missing := shapes.keys() - places.keys() - tied:
        raise InputError(f"a {type(skeleton).__name__} also needs {sorted(missing)[:3]}.")
    _save(waiting, folder, files)
    count = files + 1
    if count == 1:
        _part(folder, 0).rename(folder / "model.safetensors")
        return checksum
    names = {}
    for number in range(count):
        names[number] = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        _part(folder, number).rename(folder / names[number])
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[place] for name, place in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return checksum


def _save(tensors: dict[str, Tensor], folder: Path, number: int) -> None:
    save_file(tensors, _part(folder, number), metadata={"format": "pt"})


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"
