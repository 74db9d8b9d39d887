"""Writing a small model from a large one without ever holding it whole: tensor by tensor, file by file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .benchmark import checkpoint_bytes
from .distributed import barrier
from .errors import InputError
from .export import ExportReport, loads_with, small_class
from .launcher import rank
from .layered import MODULE, modeling_source, stock_class_of
from .output import check_output, replaced_whole
from .quantised import is_quantised
from .stock import LAYERS_KEY
from .surgery import merged_and_sliced
from .units import Units
from .verify import Check, logits_of, verify

FILE_BYTES = 2 * 10**9
"""Of one safetensors file: what is held at most, beside the tensor at hand."""


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
) -> ExportReport | None:
    """As `export_checkpoint`, without the small model in memory; under sharding every process must call it.

    The fresh process compares with the trained model's own logits, so what merging and rounding change is within its
    tolerance (`verify.GREEDY_TOLERANCE`), not apart from it.

    Returns:
        the report in the first process, None in the others.
    """
    if is_quantised(model):
        raise InputError("the base is quantised: pruner.restore(source) puts the original weights in its place first.")
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    cls, config = small_class(base.config, units.family, units.shapes_after(keep), model_class)
    config.dtype = dtype
    logits = logits_of(model, probe_ids)
    tensors = merged_and_sliced(model, units, keep)
    if rank() > 0:
        for _ in tensors:  # gathering a tensor takes all processes
            pass
        barrier()
        return None
    check_output(output, overwrite=overwrite)
    layered = LAYERS_KEY in config.to_dict()
    with torch.device("meta"):
        skeleton = cls._from_config(config, dtype=dtype)
    with replaced_whole(output) as folder:
        _write_tensors(tensors, skeleton, folder, dtype, file_bytes)
        config.architectures = [cls.__name__]
        config.save_pretrained(folder)
        (base.generation_config or GenerationConfig()).to_json_file(folder / "generation_config.json")
        if layered:
            source = modeling_source(stock_class_of(config).__name__, units.family)
            (folder / f"{MODULE}.py").write_text(source, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        check = Check(folder, probe_ids, logits.to(dtype), parameters, remote_code=layered, merged_here=False)
        (verified,) = verify([check])
        report = ExportReport(
            folder=str(output),
            format="layered" if layered else "stock",
            model_class=verified.class_name,
            parameters=parameters,
            bytes=checkpoint_bytes(folder),
            max_logit_difference=verified.difference,
            merge_kl=float("nan"),
            merge_difference=float("nan"),
            loads_with=loads_with(output, config, layered),
        )
    barrier()
    return report


def _write_tensors(
    tensors: Iterable[tuple[str, Tensor]], skeleton: PreTrainedModel, folder: Path, dtype: torch.dtype, most: int
) -> None:
    """Safetensors files of at most `most` bytes (or one tensor), and their index."""
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    tied = set(skeleton.all_tied_weights_keys)
    places: dict[str, int] = {}
    waiting: dict[str, Tensor] = {}
    files = total = held = 0
    for name, tensor in tensors:
        if shapes.get(name) != tensor.shape:
            raise InputError(f"{name} {tuple(tensor.shape)} does not fit a {type(skeleton).__name__}.")
        if name in tied:
            continue  # a file holds it once, under its other name
        value = tensor.to(dtype).cpu().contiguous().clone()
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
        return
    names = {}
    for number in range(count):
        names[number] = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        _part(folder, number).rename(folder / names[number])
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[place] for name, place in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _save(tensors: dict[str, Tensor], folder: Path, number: int) -> None:
    save_file(tensors, _part(folder, number), metadata={"format": "pt"})


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"
