"""Checkpoints with a model class of their own: whether what they compute can be written, known before any training."""

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..architecture.building import own_code
from ..architecture.discovery import find_units
from ..architecture.experts import unstack_experts
from ..architecture.families import Family
from ..system.errors import InputError
from .comparing import logits_of
from .export import build_small

PROBE_TOKENS = 32
FURTHEST = 1e-3
"""Largest |Δlogit| over the largest |logit| between two classes that compute the same in float32."""


def check_own_code(config: PreTrainedConfig, family: Family, model_class: str = "keep") -> None:
    """Whether a checkpoint's own class computes what the class does that its pruned model is written in.

    One layer of it with random weights is made, and exported in memory: it runs the checkpoint's code.

    Raises:
        InputError: there is no such class, or it computes something else.
    """
    place = own_code(config)
    if not place:
        return
    if not type(config).__module__.startswith("transformers.models."):
        raise InputError(
            f"model {config._name_or_path!r} is a {config.model_type}, a type of its own ({place}), and a pruned model "
            "can only be written in a class that transformers has: train an adapter for it (secateur adapt), or prune "
            "it from Python (secateur.Pruner)."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            difference = _difference(_one_layer(config), family, model_class)
    except InputError as error:
        raise InputError(_refusal(config, place, str(error).rstrip("."))) from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(_refusal(config, place, reason)) from None
    if not difference <= FURTHEST:
        raise InputError(_refusal(config, place, f"logits differ by {difference:.2g} of the largest", stock=False))


def _refusal(config: PreTrainedConfig, place: str, reason: str, *, stock: bool = True) -> str:
    """`stock`: the stock class may be what is meant, as far as is known; not where it computes something else."""
    instead = f"leave --trust-remote-code out to prune it as a stock {config.model_type}, or " if stock else ""
    return (
        f"model {config._name_or_path!r}: its own code ({place}) does not compute what transformers' "
        f"{config.model_type} does, in which the pruned model would be written ({reason}): {instead}prune it from "
        "Python (secateur.Pruner), or train an adapter for it (secateur adapt)."
    )


def _one_layer(config: PreTrainedConfig) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(small, key, value[:1])
    small.num_hidden_layers, small.vocab_size = 1, min(512, config.vocab_size)
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    small.dtype = torch.float32
    return small


def _difference(config: PreTrainedConfig, family: Family, model_class: str) -> float:
    """Largest |Δlogit| between the own class and the one that is written, over the largest |logit|."""
    own: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        for parameter in own.parameters():  # at the usual start all logits are nearly 0
            if parameter.dim() > 1:
                parameter.normal_(0, 2 * parameter.shape[-1] ** -0.5)
    unstack_experts(own, family)
    shapes = find_units(own, family, "none").shapes
    small = build_small(own.config, family, shapes, own.state_dict().items(), torch.float32, model_class)
    ids = torch.arange(PROBE_TOKENS).unsqueeze(0) % config.vocab_size
    expected, found = logits_of(own.eval(), ids), logits_of(small, ids)
    return float((expected - found).abs().max() / expected.abs().max())
