"""The model to train and its LoRA: what `prune` and `adapt` share before the first step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ..architecture.building import empty_model
from ..architecture.experts import share_, unstack_experts
from ..architecture.experts.lora import name_experts_
from ..architecture.families import FAMILIES
from ..architecture.quantised import is_quantised, loading_options, settle_
from ..architecture.stock import task_of
from ..checkpoint.convert import compare_with_whole
from ..config.lora import LoraOptions
from ..config.prune import PruneConfig
from ..config.run import RunConfig
from ..models.adapter import load_adapter
from ..models.adapter_extras import WEIGHTS
from ..models.coverage import tell_transposed_, uncalled_linears, unfit_lora
from ..models.devices import autocast, device_of, name_of, widened
from ..models.loading import load_model
from ..models.memory import LOAD_LESS, memory_for
from ..ranks.layers import whole
from ..system.errors import InputError
from ..system.launcher import rank
from ..system.progress import phase
from .job import Job, probe_of

PROBE = 8
"""Tokens of each of two documents that `check_packing` looks at."""
LORA_INITS: dict[str, bool | str] = {
    "default": True,
    "gaussian": "gaussian",
    "pissa": "pissa_niter_4",
    "olora": "olora",
}


def load_base(job: Job, dtype: torch.dtype, *, experts_apart: bool = True) -> PreTrainedModel:
    """The model to train: in its checkpoint's own precision (or wider, for float32 runs), as the merge must lose
    nothing; or quantised (`--load-in`), as the merge is then into the original weights.

    Args:
        experts_apart: a mixture's experts as linears, which LoRA, masks and cuts can reach. An adapter that is to fit
            the stock model must leave them as they are.
    """
    device = device_of(job.config)
    if job.config.load_in is None:
        model = load_original(job, dtype, device, experts_apart=experts_apart)
        if isinstance(job.config, PruneConfig) and job.config.extract_text and rank() == 0:
            compare_with_whole(job.source, model, probe_of(job))
        return model
    with memory_for("loading the model", LOAD_LESS):
        model = load_model(
            job.source,
            dtype=name_of(dtype),
            trust_remote_code=job.config.trust_remote_code,
            quantising=loading_options(job.config.load_in, dtype, device),
        )
    settle_(model)
    _share_blocks_(model)
    model.config.use_cache = False
    return model


def _share_blocks_(model: PreTrainedModel) -> None:
    if model.config.model_type in FAMILIES:
        share_(model, FAMILIES[model.config.model_type])


def load_original(job: Job, dtype: torch.dtype, device: torch.device, *, experts_apart: bool = True) -> PreTrainedModel:
    """The model that is not quantised, in its checkpoint's own precision (or wider, for float32 runs)."""
    with memory_for("loading the model", LOAD_LESS):
        model = widened(load_model(job.source, trust_remote_code=job.config.trust_remote_code), dtype)
        model.config.use_cache = False
        if experts_apart:
            unstack_experts(model, job.family)
        _share_blocks_(model)
        nn.Module.to(model, device)
    return model


def without_weights(job: Job) -> PreTrainedModel:
    """The original model's shapes, on the meta device."""
    model = empty_model(job.model_config, trust_remote_code=job.config.trust_remote_code)
    unstack_experts(model, job.family)
    return model


def check_packing(model: nn.Module) -> None:
    """Refuse `--packing separate` where the model's attention does not end where positions begin anew.

    Raises:
        InputError: what precedes a document changes its logits.
    """
    tokens = torch.arange(2 * PROBE).reshape(2, PROBE)
    inputs = {
        "input_ids": torch.stack([tokens.flatten(), torch.cat([tokens[0].flip(0), tokens[1]])]),
        "position_ids": torch.arange(PROBE).repeat(2, 2),
    }
    try:
        with torch.inference_mode():
            inputs = {name: value.to(next(model.parameters()).device) for name, value in inputs.items()}
            logits = model(**inputs, use_cache=False).logits[:, PROBE:]
    except TypeError:
        moved = float("inf")
    else:
        moved = float((logits[0] - logits[1]).abs().max() / logits.abs().max())
    # 0, but for kernels that add in another order, and 8-bit products, which look at all rows
    if moved > (0.02 if is_quantised(model) else 1e-5):
        raise InputError(
            f"--packing separate: {type(model).__name__} does not keep apart documents by their positions: use joined."
        )


def linears_without_use(base: PreTrainedModel, job: Job, dtype: torch.dtype) -> list[str]:
    """Paths of the linears that LoRA must leave out, as no forward pass calls them.

    Raises:
        InputError: the user named one of them (`--targets`).
    """
    ids = torch.tensor([job.blocks[0]["input_ids"][:PROBE]], device=base.device)
    with autocast(base.device.type, dtype):
        unused = uncalled_linears(base, ids)
    targets = job.config.targets
    if found := [path for path in unused if any(path == t or path.endswith("." + t) for t in targets)]:
        raise InputError(
            f"--targets {found[0].rpartition('.')[2]}: LoRA on {found[0]} would never be used, as its module reads the "
            "weight without calling it, or takes no text: leave it out."
        )
    return unused


@phase("adding LoRA")
def add_lora(
    base: PreTrainedModel,
    config: RunConfig,
    linears: Sequence[str] | str,
    *,
    scaling: float | None = None,
    without: Sequence[str] = (),
) -> PeftModel:
    """LoRA on `linears` (or `--targets`), or the user's own adapter.

    Args:
        linears: names of the linears that get LoRA unless the user says otherwise; `all-linear` for all.
        scaling: what B·A is multiplied by; by default what `--alpha` and `--rank` say (2 without `--alpha`).
        without: paths of linears that get none.
    """
    if config.packing == "separate":
        check_packing(base)
    model = load_adapter(base, config.adapter, trainable=True) if config.adapter else None
    if model is None:
        lora = lora_config(config, linears, scaling)
        lora.exclude_modules = list(without) or None
        model = _with_lora(base, config, lora)
    if config.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def lora_config(config: LoraOptions, linears: Sequence[str] | str, scaling: float | None = None) -> LoraConfig:
    """The LoRA that a run without `--adapter` begins with; the arguments are `add_lora`'s."""
    if scaling is None:
        scaling = lora_scaling(config, 2.0)
    return LoraConfig(
        r=config.first_rank,
        lora_alpha=whole(scaling * config.first_rank),  # type: ignore[arg-type]  # PEFT takes fractions
        lora_dropout=config.dropout,
        init_lora_weights=LORA_INITS[config.lora_init],  # type: ignore[arg-type]
        target_modules=list(config.targets) or (linears if isinstance(linears, str) else list(linears)),
        task_type="CAUSAL_LM",
    )


def check_resumable(model: nn.Module, checkpoint: Path) -> None:
    """Whether a training checkpoint has the LoRA layers of this run: PEFT passes over what is missing or too much.

    Raises:
        InputError: it has others (an earlier version may have named experts' linears otherwise).
    """
    with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
        saved = {name for name in file.keys() if ".lora_" in name}  # noqa: SIM118 - beside them: biases, embeddings
    once, each = (  # a module that stands in two layers has two names, of which a file has one or both
        {
            name.replace(".default", "")
            for name, _ in model.named_parameters(remove_duplicate=single)
            if ".lora_" in name
        }
        for single in (True, False)
    )
    if other := sorted((saved - each) | (once - saved)):
        raise InputError(
            f"--resume: {checkpoint} has LoRA on other linears than this run ({other[0]} and {len(other) - 1} more): "
            "another version wrote it, so start anew with --overwrite."
        )


def _with_lora(base: PreTrainedModel, config: LoraOptions, lora: LoraConfig) -> PeftModel:
    name_experts_(lora, base)
    tell_transposed_(lora, base)
    lora.task_type = task_of(base.config)
    try:
        model = get_peft_model(base, lora)
    except ValueError as error:
        raise unfit_lora(base, config, " ".join(str(error).split())[:300]) from None
    assert isinstance(model, PeftModel)
    return model


def checkpoint_layers(model: PeftModel) -> None:
    """Keep only the layers' inputs in the forward pass (`--gradient-checkpointing`); before one-shot scoring too.

    Raises:
        InputError: the architecture has no support for it.
    """
    base: Any = model.get_base_model()
    if not base.supports_gradient_checkpointing:
        raise InputError(f"--gradient-checkpointing: transformers has none for {type(base).__name__}: leave it out.")
    # The later name is the newer one's; each takes the options of torch.utils.checkpoint.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    base.disable_input_require_grads()  # enabled for the reentrant kind; here it would only make unused gradients


def lora_scaling(config: LoraOptions, default: float) -> float:
    """What B·A is multiplied by: α/r, or α/√r with `--rslora`, of the rank that the adapter ends with.

    Args:
        default: α/r where `--alpha` is not given.
    """
    alpha = config.alpha if config.alpha is not None else default * config.rank
    return float(alpha / (config.rank**0.5 if config.rslora else config.rank))
