"""Writing a trained adapter, or the model it is merged into; done only when a fresh process reads the same back."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import yaml
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..architecture.layered import MODULE, is_layered, layered_family, modeling_source
from ..config.formats import LAYERED, STOCK
from ..models.adapter_extras import WEIGHTS, extra_places
from ..models.source import ModelSource
from ..models.surgery import lora_layers, merged_weight
from ..system.errors import VerificationError
from ..system.output import check_output, link_or_copy, replaced_whole, scratch
from ..system.quiet import quiet_transformers
from .card import adapter_front
from .child import ADAPTER
from .comparing import MOST_KL, compare_logits, in_precision, logits_of, wide_of
from .export import ExportReport, round_, write_checkpoint
from .serving.adapters import bake_
from .tokenizer_files import WrittenTokenizer, write_tokenizer
from .verify import TOLERANCE, fresh_process

log = logging.getLogger("secateur")


@dataclass(frozen=True, eq=False)
class AdapterPlace:
    """Where an adapter goes, and the model that it belongs to."""

    output: Path
    overwrite: bool
    base: str
    """The model as the user named it."""
    source: ModelSource
    trust_remote_code: bool
    tokenizer: PreTrainedTokenizerBase
    probe_ids: torch.Tensor
    """(1, tokens) of real text, for comparing logits."""
    dtype: torch.dtype
    """Precision of the model's checkpoint, and of a merged result."""
    runs_code: bool = False
    """Whether others need `trust_remote_code` to load the model."""
    one_rank: bool = False
    """Whether ranks and scalings are baked into the factors, for engines that know one of each."""
    extras: tuple[str, ...] = ()
    """Names, in the file of the adapter that the run began with, of the base model's own tensors that it holds."""


@dataclass(frozen=True)
class AdapterReport:
    """What was written and how it was checked."""

    folder: str
    format: str
    """`adapter` or `merged`."""
    bytes: int
    max_logit_difference: float
    """Fresh process against memory, on real text."""
    loads_with: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Finish = Callable[[Path, AdapterReport], None]


def write_adapter(model: PeftModel, place: AdapterPlace, finish: Finish) -> AdapterReport:
    """A plain PEFT adapter, read back by PEFT alone in a fresh process before it is put in place.

    Raises:
        InputError: the output cannot be written.
        VerificationError: what was read back does not compute what was trained.
    """
    output = place.output
    check_output(output, overwrite=place.overwrite)
    model.cpu()
    needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with replaced_whole(output, needed) as folder:
        with quiet_transformers():
            model.save_pretrained(str(folder))
        _add_extras(model, place.extras, folder)
        ranks = {path: layer.r[layer.active_adapters[0]] for path, layer in lora_layers(model).items()}
        readers = "" if place.one_rank else other_readers(model)
        if place.one_rank:
            ranks = dict.fromkeys(ranks, bake_(folder))
        (folder / "README.md").write_text(_card(place, readers), encoding="utf-8")
        found = _read_back(model, place, folder, write_tokenizer(place.tokenizer, folder))
        dtype = cast(torch.dtype, model.get_base_model().dtype)
        if not found["difference"] <= TOLERANCE[dtype] * found["scale"]:
            raise VerificationError(
                f"the written adapter computes other logits: {found['difference']:.3g} off, "
                f"with {TOLERANCE[dtype] * found['scale']:.3g} allowed. {output} is untouched."
            )
        if found["tokenizer"]:
            raise VerificationError(f"the written adapter, read back in a fresh process: {found['tokenizer']}.")
        if found["ranks"] != ranks:
            raise VerificationError("the written adapter has other ranks than its configuration says.")
        report = AdapterReport(
            folder=str(output),
            format="adapter",
            bytes=(folder / WEIGHTS).stat().st_size,
            max_logit_difference=found["difference"],
            loads_with=_loads_with(place, place.source.path, str(place.output)),
        )
        finish(folder, report)
    if readers:
        log.warning("%s: %s", output, readers)
    return report


def other_readers(model: PeftModel) -> str:
    """What engines that know one scaling for all layers make of an adapter; empty where they compute the same.

    vLLM before 0.32 takes alpha over the configuration's rank for every layer (its root with rsLoRA), llama.cpp alpha
    over the layer's own rank. PEFT follows each layer's alpha, and so does vLLM 0.32.
    """
    config = cast(LoraConfig, model.peft_config[model.active_adapter])
    root = math.sqrt if config.use_rslora else float
    layers = lora_layers(model).values()
    true = [(layer.scaling[layer.active_adapters[0]], layer.r[layer.active_adapters[0]]) for layer in layers]
    wrong = [
        name
        for name, scaling in (("vLLM before 0.32", lambda rank: config.lora_alpha / root(config.r)),
                              ("llama.cpp", lambda rank: config.lora_alpha / rank))
        if not all(math.isclose(scaling(rank), given, rel_tol=1e-6) for given, rank in true)
    ]  # fmt: skip
    if not wrong:
        return ""
    return (
        f"this adapter's scaling is not one for all layers, as {' and '.join(wrong)} would take it: load it with PEFT, "
        "convert it (export --format adapter, or adapt --adapter-for vllm), or merge it (--merge)."
    )


def write_merged(model: PeftModel, place: AdapterPlace, finish: Finish) -> AdapterReport:
    """The base model with the adapter merged into it, as a stock checkpoint."""
    check_output(place.output, overwrite=place.overwrite)
    model.cpu()
    ids, dtype = place.probe_ids, place.dtype
    reports: list[AdapterReport] = []

    def with_records(folder: Path, export: ExportReport) -> None:
        reports.append(
            AdapterReport(export.folder, "merged", export.bytes, export.max_logit_difference, export.loads_with)
        )
        finish(folder, reports[0])

    with in_precision(model, wide_of(dtype)):
        expected = logits_of(model, ids)
    merged = merged_model(model)
    with in_precision(merged, wide_of(dtype)):
        merge = compare_logits("the merged", logits_of(merged, ids), "the trained", expected, MOST_KL[wide_of(dtype)])
    round_(merged, dtype)
    merged.config.use_cache = True
    family = layered_family(merged.config) if is_layered(merged.config) else None
    format = STOCK if family is None else LAYERED
    write_checkpoint(merged, family, place.output, format, ids, place.tokenizer, merge, with_records)
    return reports[0]


def merged_model(model: PeftModel, keep: Mapping[str, torch.Tensor] = MappingProxyType({})) -> PreTrainedModel:
    """The base model with LoRA merged into it, in float32 or wider and not rounded. `model` is used up.

    Args:
        keep: path of a linear -> (out, in) bool, which of its weights stay; the others are zero.
    """
    for path, layer in lora_layers(model).items():
        linear, weight = layer.get_base_layer(), merged_weight(layer)
        weight = weight * keep[path] if path in keep else weight
        linear.weight.data = weight.T.contiguous() if isinstance(linear, Conv1D | torch.nn.Embedding) else weight
    return cast(PreTrainedModel, model.unload())


def _add_extras(model: PeftModel, extras: tuple[str, ...], folder: Path) -> None:
    """Add to an adapter's file what the one that it came of had beside its factors, as the model has it now.

    PEFT writes biases that are trained, and embeddings where LoRA is on them or their size is another.
    """
    path = folder / WEIGHTS
    written, held = load_file(path), model.state_dict()
    missing = [place for place in extra_places(extras, held).values() if place not in written]
    if missing:
        written |= {name: held[name].detach().cpu().clone().contiguous() for name in missing}
        save_file(written, path, metadata={"format": "pt"})


def _read_back(model: PeftModel, place: AdapterPlace, folder: Path, tokenizer: WrittenTokenizer) -> dict[str, Any]:
    """What a process without secateur finds in the adapter."""
    with scratch() as work:
        probe = work / "probe.safetensors"
        ids = place.probe_ids
        save_file({"ids": ids, "logits": logits_of(model, ids).contiguous()}, probe)
        base = str(Path(place.source.path).absolute()) if place.source.is_local else place.source.path
        config = cast(PreTrainedConfig, model.get_base_model().config)
        layered = is_layered(config, trust_remote_code=place.trust_remote_code)
        if layered:  # what runs there is what is written here, whatever code lies in the folder
            base = str(_with_our_code(Path(base), Path(work), model))
        task = {
            "base": base,
            "options": {"gguf_file": place.source.gguf_file} if place.source.gguf_file else {},
            "dtype": str(model.get_base_model().dtype).removeprefix("torch."),
            "trust_remote_code": place.trust_remote_code or layered,
            "folder": str(folder.absolute()),
            "probe": str(probe),
            "tokenizer": tokenizer.to_dict(),
            "threads": torch.get_num_threads(),
        }
        found: dict[str, Any] = fresh_process(ADAPTER, task, folder)
    return found


def _with_our_code(folder: Path, work: Path, model: PeftModel) -> Path:
    """A layered checkpoint as it is, but for the modelling file, which is written anew."""
    config = cast(PreTrainedConfig, model.get_base_model().config)
    copy = work / "base"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != f"{MODULE}.py":
            link_or_copy(path, copy / path.name)
    source = modeling_source(config, layered_family(config))
    (copy / f"{MODULE}.py").write_text(source, encoding="utf-8")
    return copy


def _loads_with(place: AdapterPlace, model: str, adapter: str) -> str:
    trust = ", trust_remote_code=True" if place.runs_code else ""
    gguf = f", gguf_file={json.dumps(place.source.gguf_file)}" if place.source.gguf_file else ""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(model)}{gguf}{trust})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(adapter)})"
    )


def _card(place: AdapterPlace, readers: str) -> str:
    """Names alone: where model and adapter lie on this machine says nothing to others."""
    folder = Path(place.source.path) if place.source.is_local else None
    front = adapter_front(place.base, folder)
    base = front.get("base_model", Path(place.base).name)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---\n\n# A LoRA adapter for {Path(base).name}\n\n"
        "Its rank was pruned while it trained (PrunedLoRA, arXiv:2510.00192). `result.json` has the whole "
        "configuration, `ranks.json` each layer's rank after each cut.\n\n"
        f"```python\n{_loads_with(place, base, place.output.name)}\n```\n"
        + (f"\n{readers[0].upper()}{readers[1:]}\n" if readers else "")
    )
