"""Writing the small model: stock where layers are alike, layered or padded where they differ; always verified."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .benchmark import checkpoint_bytes, parameter_count
from .config import ExportConfig
from .embedded import quiet_transformers
from .errors import InputError, VerificationError
from .families import Family, family_of
from .layered import MODULE, layer_sizes, layered_class, modeling_source, stock_class_of
from .models import ModelSource, load_config, load_tokenizer
from .output import check_output, replaced_whole
from .padding import padded_shape, padded_state
from .stock import LAYERS_KEY, resized_config
from .surgery import merged_and_sliced
from .units import LayerShape, Units
from .verify import Check, logits_of, verify

PROBE = (
    "A gardener prunes a tree so that what is left can grow. The cut is made close to the branch, with a sharp blade, "
    "and never all at once: a few twigs this year, a few the next. Whoever cuts too much in one season finds the tree "
    "weak in the following spring, while one that was never cut at all bears small and sour fruit."
)

MOST_KL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Mean KL divergence (nats) allowed between the model as trained (masks, LoRA apart) and as merged. In bfloat16
merging rounds each weight once more, and activations differ by roundings; a wrong slice costs whole nats."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked."""

    folder: str
    format: str
    """`stock`, `layered` or `padded`."""
    model_class: str
    parameters: int
    bytes: int
    max_logit_difference: float
    """Fresh process against memory, on real text."""
    merge_kl: float
    """Mean KL (nats) of the merged, sliced model from the one that was trained."""
    loads_with: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Finish = Callable[[Path, ExportReport], None]


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
) -> ExportReport:
    """Merge, slice, write, read back in a fresh process, and only then put the folder in place.

    Args:
        model: the trained PEFT model (or a plain one); not changed.
        keep: pool name -> (units,) bool; what stays.
        probe_ids: (1, tokens) of real text, at least 17.
        dtype: precision of the checkpoint.
        finish: called with the verified temporary folder, to put records beside the weights.
    Raises:
        InputError: the output cannot be written, or no stock config takes the sizes.
        VerificationError: what was read back does not compute what was trained.
    """
    check_output(output, overwrite=overwrite)
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    shapes = units.shapes_after(keep)
    small = build_small(base.config, units.family, shapes, merged_and_sliced(model, units, keep), dtype, model_class)
    small.generation_config = base.generation_config
    merge_kl = _mean_kl(logits_of(model, probe_ids), logits_of(small, probe_ids))
    if not merge_kl <= MOST_KL[dtype]:
        raise VerificationError(
            f"the merged model predicts {merge_kl:.3g} nats off the trained one (allowed: {MOST_KL[dtype]:g})."
        )
    layered = LAYERS_KEY in small.config.to_dict()
    format = "layered" if layered else "stock"
    return _write(small, units.family, output, format, probe_ids, tokenizer, merge_kl, finish)


def export_config(config: ExportConfig) -> ExportReport:
    """`secateur export`: a layered checkpoint, zero-padded to equal layers, as a stock one."""
    folder, output = Path(config.model), Path(config.output)
    check_output(output, overwrite=config.overwrite, model_folder=folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    source = ModelSource(config.model, config.model)
    old = load_config(source)
    sizes = old.to_dict().get(LAYERS_KEY)
    if not sizes:
        raise InputError(
            f"--model {config.model}: its layers are alike, so it is a stock checkpoint already: no padding needed."
        )
    family = family_of(old.model_type)
    head_dim = getattr(old, family.head_dim)
    shapes = tuple(
        LayerShape(s["num_attention_heads"], s["num_key_value_heads"], s["intermediate_size"], head_dim) for s in sizes
    )
    state = _read_state(folder)
    dtype = next(iter(state.values())).dtype
    layered = build_small(old, family, shapes, state.items(), dtype, "keep")
    wide = padded_shape(old, family, shapes, config.model_class)
    alike = (wide,) * len(shapes)
    padded = build_small(old, family, alike, padded_state(state, family, shapes, wide), dtype, config.model_class)
    padded.generation_config = layered.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(source)
    ids = default_probe(tokenizer, old.get_text_config().vocab_size)
    merge_kl = _mean_kl(logits_of(layered, ids), logits_of(padded, ids))
    if not merge_kl <= MOST_KL[dtype]:
        raise VerificationError(f"padding moved the predictions by {merge_kl:.3g} nats (allowed: {MOST_KL[dtype]:g}).")
    return _write(padded, family, output, "padded", ids, tokenizer, merge_kl, None)


def default_probe(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> Tensor:
    """(1, tokens) to compare models on: a paragraph of English, or without a tokenizer every token in turn."""
    if tokenizer is None:
        return torch.arange(min(vocabulary, 256)).unsqueeze(0)
    return torch.tensor([tokenizer(PROBE)["input_ids"]])


def build_small(
    config: PreTrainedConfig,
    family: Family,
    shapes: tuple[LayerShape, ...],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    model_class: str,
) -> PreTrainedModel:
    """A model of the given layer shapes in memory: the stock class where they are alike, else the layered one."""
    if len({shape.key() for shape in shapes}) == 1:
        new_config = resized_config(config, family, shapes[0], model_class)
        cls = stock_class_of(new_config)
    else:
        if model_class != "keep":
            raise InputError(
                f"--model-class {model_class}: layers that differ need their own modelling file, which keeps the "
                "class: use it with --allocation uniform, or with export --format padded."
            )
        shape = _stock_shape(config, family)
        new_config = resized_config(config, family, shape)
        cls = layered_class(new_config, family)
        setattr(new_config, LAYERS_KEY, layer_sizes(shapes))
        new_config.auto_map = {"AutoModelForCausalLM": f"{MODULE}.{cls.__name__}"}
    new_config.dtype = dtype
    new_config.use_cache = True
    small = cls._from_config(new_config, dtype=dtype)
    loaded = small.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors}, strict=False)
    # A file holds tied weights once; the model has them under both names.
    absent = set(loaded.missing_keys) - set(small.all_tied_weights_keys)
    if absent or loaded.unexpected_keys:
        raise InputError(
            f"the tensors do not fit a {cls.__name__}: missing {sorted(absent)[:3]}, unexpected "
            f"{loaded.unexpected_keys[:3]}: the checkpoint does not follow the {family.name} layout."
        )
    return small.eval()


def _write(
    small: PreTrainedModel,
    family: Family,
    output: Path,
    format: str,
    probe_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    merge_kl: float,
    finish: Finish | None,
) -> ExportReport:
    """Save, read back in a fresh process, let the caller add records, put in place."""
    layered = format == "layered"
    with replaced_whole(output) as folder:
        with quiet_transformers():
            small.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if layered:
            stock = stock_class_of(small.config).__name__
            (folder / f"{MODULE}.py").write_text(modeling_source(stock, family), encoding="utf-8")
        check = Check(folder, probe_ids, logits_of(small, probe_ids), parameter_count(small), remote_code=layered)
        (verified,) = verify([check])
        report = ExportReport(
            folder=str(output),
            format=format,
            model_class=verified.class_name,
            parameters=check.parameters,
            bytes=checkpoint_bytes(folder),
            max_logit_difference=verified.difference,
            merge_kl=merge_kl,
            loads_with=_loads_with(output, layered),
        )
        if finish is not None:
            finish(folder, report)
    return report


def _stock_shape(config: PreTrainedConfig, family: Family) -> LayerShape:
    """The sizes that the config has itself; a layered checkpoint's layers override them."""
    values = config.to_dict()
    return LayerShape(
        values[family.heads], values[family.kv_heads], values[family.ffn], getattr(config, family.head_dim)
    )


def _mean_kl(trained: Tensor, written: Tensor) -> float:
    """Mean KL divergence in nats over positions; logits (1, tokens, vocabulary)."""
    p, q = trained.double().log_softmax(-1), written.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _read_state(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return state


def _loads_with(output: Path, layered: bool) -> str:
    trust = ", trust_remote_code=True" if layered else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(str(output))}{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(str(output))})"
    )
