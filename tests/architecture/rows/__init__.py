"""A row for each registered model type: a tiny model from its real config class."""

import torch
from transformers import AutoConfig

from secateur.architecture import likeness
from secateur.architecture.experts import unstack_experts
from secateur.architecture.families import FAMILIES, REFUSED
from secateur.architecture.stock import stock_class_of

from . import basic, dense, encoder_decoders, hybrids, latent, mixtures, varied
from .sizes import SIZES, SOFT_CAPS

__all__ = ["IDS", "SIZES", "SOFT_CAPS", "TYPES", "tiny", "unregister"]

TYPES: dict[str, dict[str, object]] = {
    name: row
    for module in (basic, dense, mixtures, latent, hybrids, varied, encoder_decoders)
    for name, row in module.TYPES.items()
}
"""Model type (and variant) -> what its config is given beside `SIZES` (None: left out)."""
MEANT = ("bos_token_id", "q_lora_rank")
"""Keys whose None says something."""
T5S = ("t5", "mt5", "umt5")
IDS = torch.arange(3, 40).unsqueeze(0)


def tiny(name: str, layers: int | None = None):
    """A wide random model: norms and the like around their own start, everything else of standard deviation 0.2.

    Args:
        layers: how many, where the row does not say it.
    """
    model_type = name.split("/")[0]
    count = {"num_hidden_layers": layers} if layers else {}
    given = {**SIZES, **count, **TYPES[name]}
    if model_type in T5S:
        given = {"num_layers": layers or 3, **TYPES[name]}
    options = {k: v for k, v in given.items() if v is not None or k in MEANT}
    config = AutoConfig.for_model(model_type, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # some vectors start at random (sinks), and what is added to them is no value of its own
        model = stock_class_of(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        kept = model.state_dict()  # OpenAI GPT calls its causal mask a bias
        biases = [
            (n, b) for n, b in model.named_buffers() if n.endswith("bias") and b.is_floating_point() and n in kept
        ]
        for path, parameter in (*model.named_parameters(), *biases):
            # T5 does not scale attention scores: with wider ones its softmax is a switch, and rounding throws it.
            values = torch.randn(parameter.shape, generator=generator) * (0.1 if model_type in T5S else 0.2)
            own = "norm" in path or "ln_" in path or (parameter.dim() == 1 and not path.endswith("bias"))
            parameter.copy_(parameter + values if own else values)
    unstack_experts(model)
    return model.eval()


def unregister(model_type: str, monkeypatch) -> None:
    """Let a type be one that nothing is known of, until the test ends."""
    monkeypatch.setattr(FAMILIES, "_entries", {name: f for name, f in FAMILIES.items() if name != model_type})
    monkeypatch.delitem(REFUSED, model_type, raising=False)
    monkeypatch.setattr(likeness, "BUILT_IN", dict(FAMILIES.items()))
