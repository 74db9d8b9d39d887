"""The keys of a GGUF file that say what its model computes, against the config that transformers makes of them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from ..system.terminal.streams import safe

log = logging.getLogger("secateur")

SPECIAL = ("gemma4", "gpt-oss", "minimax-m2", "qwen35", "qwen35moe", "lfm2", "mamba", "t5", "t5encoder", "bloom")
"""Architectures whose keys transformers reads by code of its own, or that have none of those below."""
ROTARY = ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
"""Model types whose rotary embedding is stretched as their config says, all layers alike."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
APPLIED: dict[str, tuple[str, ...]] = {
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.layer_norm_epsilon": EPSILONS,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
}
"""Key -> the config's names for it, of which the first that is there is set."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_group_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "moe_every_n_layers": (0, 1),
    "rescale_every_n_layers": (0,),
    "swin_norm": (False,),
    "ssm.dt_b_c_rms": (False,),
}
"""Key -> the values with which it changes nothing."""
HARMLESS = (
    "context_length", "vocab_size", "tensor_data_layout", "features_length", "pooling_type", "decoder_start_token_id",
    "mm.tokens_per_image", "attention.value_length",  # its shapes say it
    "rope.scaling.finetuned", "rope.scaling.original_context_length",  # of use to the scaling alone
)  # fmt: skip
STRETCHED = "rope.scal"
"""How the keys begin that stretch the rotary embedding, older ones as well."""


def settle_keys_(config: PreTrainedConfig, architecture: str, own: dict[str, Any]) -> None:
    """Put into `config` what a file's keys say and transformers leaves at its defaults.

    Args:
        own: the architecture's keys, without its name.
    """
    if architecture in SPECIAL:
        return
    for key, names in APPLIED.items():
        name = next((name for name in names if _can_hold(config, name)), None)
        if key in own and name is not None and own[key] != getattr(config, name):
            setattr(config, name, (own[key] or None) if key.endswith("softcapping") else own[key])
    if config.model_type in ("mistral", "phi3"):
        config.sliding_window = own.get("attention.sliding_window") or None
    if config.model_type in ("gemma2", "gemma3_text"):
        # as llama.cpp has it, which goes by the number of layers: the key is not written
        largest = config.num_hidden_layers == (46 if config.model_type == "gemma2" else 62)
        width = config.hidden_size // config.num_attention_heads if largest else config.head_dim
        config.query_pre_attn_scalar = width
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope and "rope.freq_base" in own:
        rope["rope_theta"] = own["rope.freq_base"]
    if "partial_rotary_factor" in rope and "rope.dimension_count" in own:
        rope["partial_rotary_factor"] = own["rope.dimension_count"] / _head_dim(config)
    _stretch_(config, rope, own)


def keys_left(config: PreTrainedConfig, name: str, own: dict[str, Any]) -> list[str]:
    """The keys that change what the model computes and that `config` does not follow.

    Args:
        name: the architecture's, as transformers has it.
    """
    if name.replace("_", "-") in SPECIAL or name in SPECIAL:
        return []
    mapping: Any = GGUF_CONFIG_MAPPING.get(name, {})
    taken = {key for key, target in mapping.items() if target}
    left = []
    for key, value in own.items():
        check = CHECKED.get(key)
        if isinstance(value, list) and len(set(map(str, value))) > 1 and not check:
            left.append(key)  # layers that differ
        elif check:
            left += [] if check(config, value) else [key]
        elif key.startswith(STRETCHED) and key not in HARMLESS:
            left += [] if _is_followed(config, own) else [key]
        elif key in HARMLESS or key in taken or _is_applied(config, key, value) or value in NEUTRAL.get(key, ()):
            continue
        elif key in KNOWN:
            left.append(key)
        else:
            log.warning("%s.%s = %s is not known to gguf-py and was left out", name, safe(key), safe(str(value)))
    return left


def rope_from_tensor(config: PreTrainedConfig, factors: np.ndarray, own: dict[str, Any]) -> bool:
    """Whether the divisors of a rotary embedding's frequencies are none, or Llama 3's, which `config` then follows.

    Args:
        factors: (head_dim / 2,)
    """
    if np.allclose(factors, 1):
        return True
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in ROTARY or len(factors) != _head_dim(config) // 2 or rope["rope_type"] != "default":
        return False
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(len(factors)) / len(factors))
    largest, low, high = float(factors.max()), 1.0, 4.0
    inside = (factors > 1 + 1e-4) & (factors < largest * (1 - 1e-4))
    contexts = [8192.0, float(own.get("rope.scaling.original_context_length", 0))]
    if inside.any():  # between its bounds the formula tells the context that it was made with
        smooth = (1 / factors - 1 / largest) / (1 - 1 / largest)
        contexts.append(float(np.median((wavelengths * (smooth * (high - low) + low))[inside])))
    for context in contexts:
        if context < 1:
            continue
        smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - smooth) / largest + smooth), factors, rtol=1e-3):
            config.rope_parameters = {
                "rope_type": "llama3", "rope_theta": rope["rope_theta"], "factor": largest, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": round(context),
            }  # fmt: skip
            return True
    return False


def _stretch_(config: PreTrainedConfig, rope: dict[str, Any], own: dict[str, Any]) -> None:
    """Linear and YaRN scaling, as llama.cpp computes them."""
    kind, factor = _scaling(own)
    if kind == "none":
        return
    if config.model_type == "gemma3_text" and kind == "linear":  # of the layers without a window
        rope["full_attention"] |= {"rope_type": "linear", "factor": factor}
    elif config.model_type in ROTARY and rope.get("rope_type") == "default":
        theta = rope["rope_theta"]
        if kind == "linear":
            config.rope_parameters = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
        elif kind == "yarn":
            original = own.get("rope.scaling.original_context_length") or own.get("context_length")
            config.rope_parameters = {
                "rope_type": "yarn", "rope_theta": theta, "factor": factor,
                "original_max_position_embeddings": original,
                "attention_factor": (own.get("rope.scaling.attn_factor") or 1.0) * (1 + 0.1 * math.log(factor)),
                "beta_fast": own.get("rope.scaling.yarn_beta_fast") or 32.0,
                "beta_slow": own.get("rope.scaling.yarn_beta_slow") or 1.0,
            }  # fmt: skip


def _scaling(own: dict[str, Any]) -> tuple[str, float]:
    """Which scaling of the rotary embedding, and by how much."""
    factor = float(own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1.0)
    kind = str(own.get("rope.scaling.type", "linear"))
    return ("none", 1.0) if (factor == 1 and kind in ("linear", "yarn")) or kind == "none" else (kind, factor)


def _is_followed(config: PreTrainedConfig, own: dict[str, Any]) -> bool:
    """Whether the config stretches the rotary embedding as the file's keys say."""
    kind, factor = _scaling(own)
    extra = {
        "rope.scaling.yarn_ext_factor": (1.0,), "rope.scaling.yarn_log_multiplier": (0.0,),
        "rope.scaling.yarn_attn_factor": (1.0,), "rope.scaling.alpha": (0.0, 1.0),
    }  # fmt: skip
    if kind != "yarn":
        extra["rope.scaling.attn_factor"] = (0.0, 1.0)
    if any(key in own and own[key] not in neutral for key, neutral in extra.items()):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return kind == "none" or (rope.get("rope_type") == kind and rope.get("factor") == factor)


def _is_applied(config: PreTrainedConfig, key: str, value: Any) -> bool:
    """Whether the config has a key's value, under one of its names."""
    return any(getattr(config, name, None) == value for name in APPLIED.get(key, ()))


def _can_hold(config: PreTrainedConfig, name: str) -> bool:
    return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _same_rotary(config: PreTrainedConfig, value: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    return value == round(_head_dim(config) * rope.get("partial_rotary_factor", 1.0))


def _same_theta(config: PreTrainedConfig, value: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    return math.isclose(rope.get("full_attention", rope).get("rope_theta", 10000.0), value, rel_tol=1e-6)


def _same_theta_near(config: PreTrainedConfig, value: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    return math.isclose(rope.get("sliding_attention", rope).get("rope_theta", 10000.0), value, rel_tol=1e-6)


def _same_window(config: PreTrainedConfig, value: Any) -> bool:
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    used = getattr(config, "use_sliding_window", True)
    return not value or value >= longest or (used and getattr(config, "sliding_window", None) == value)


def _same_pattern(config: PreTrainedConfig, value: Any) -> bool:
    kinds = getattr(config, "layer_types", None) or []
    near = [kind == "sliding_attention" for kind in kinds]
    if isinstance(value, list):
        return near == [bool(one) for one in value]
    return near == [bool((layer + 1) % value) if value else False for layer in range(len(near))]


def _same_scale(config: PreTrainedConfig, value: Any) -> bool:
    width = getattr(config, "query_pre_attn_scalar", None) or _head_dim(config)
    return not value or math.isclose(value, width**-0.5, rel_tol=1e-4)


CHECKED: dict[str, Callable[[PreTrainedConfig, Any], bool]] = {
    "rope.dimension_count": _same_rotary,
    "rope.freq_base": _same_theta,
    "rope.freq_base_swa": _same_theta_near,
    "attention.sliding_window": _same_window,
    "attention.sliding_window_pattern": _same_pattern,
    "attention.scale": _same_scale,
}
"""Key -> whether the config follows it."""
KNOWN = {
    value.removeprefix("{arch}.")
    for group in vars(gguf.Keys).values()
    if isinstance(group, type)
    for value in vars(group).values()
    if isinstance(value, str) and value.startswith("{arch}.")
}
"""Keys that llama.cpp reads, as gguf-py lists them."""
