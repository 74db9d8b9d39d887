"""Models of real shapes with random weights, whole or quantised, made on the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from secateur.models.devices import compute_dtype, default_device

LLAMA: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
             "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512},
    "smollm2-135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
                     "max_position_embeddings": 8192},
    "7b": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                    "num_attention_heads": 40},
    "65b": LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80,
                    "num_attention_heads": 64},
}  # fmt: skip


def random_model(shape: dict[str, Any], load_in: str = "none") -> PreTrainedModel:
    """A Llama with random weights in the dtype that is computed in; a quantised one is made linear by linear."""
    config = LlamaConfig(**shape, use_cache=False)
    device = default_device()
    if load_in == "none":
        with device:
            previous = torch.get_default_dtype()
            torch.set_default_dtype(compute_dtype("auto"))
            try:
                return LlamaForCausalLM(config)
            finally:
                torch.set_default_dtype(previous)
    model = meta_model(shape)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, QUANTISED[load_in](module, device))
    fill(model, device)
    # What transformers tells PEFT of a model that it has quantised itself.
    setattr(model, f"is_loaded_in_{load_in}", True)
    return model


def meta_model(shape: dict[str, Any]) -> PreTrainedModel:
    """The shapes alone."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**shape, use_cache=False)).to(compute_dtype("auto"))


def fill(model: PreTrainedModel, device: torch.device) -> None:
    """Random values for what is still without storage."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.empty(parameter.shape, dtype=compute_dtype("auto"), device=device).normal_(std=0.02)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    rotary = type(model.model.rotary_emb)
    with device:
        model.model.rotary_emb = rotary(model.config)


def in_8bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    new = Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
    new.weight = Int8Params(random_weight(linear, device), requires_grad=False, has_fp16_weights=False).to(device)
    return new


def in_4bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    new = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype("auto"), quant_type="nf4"
    )
    new.weight = Params4bit(random_weight(linear, device), requires_grad=False, quant_type="nf4", module=new).to(device)
    return new


def random_weight(linear: nn.Linear, device: torch.device) -> Tensor:
    return torch.empty(linear.weight.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)


QUANTISED: dict[str, Callable[[nn.Linear, torch.device], nn.Module]] = {"8bit": in_8bit, "4bit": in_4bit}
