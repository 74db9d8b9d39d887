"""Layers that differ as NVIDIA's DeciLM has them, for which vLLM has a class of its own: which sizes, of which models.

Versions of vLLM that serve the layered folder as it is need none of this. In DeciLM a layer has an FFN of its own width
and KV heads of its own number; query heads are equally many in all. So FFNs stay as they are, and attention is
zero-padded where it must be.
"""

from dataclasses import replace

from transformers import PreTrainedConfig

from ...architecture.families import Family
from ...architecture.layout import LayerShape
from ...architecture.stock import accepts, window_of
from ...config.formats import LAYERED, PADDED, VLLM
from ...system.errors import InputError
from .engines import VLLM_ENGINE
from .layouts import SAME, WHY_NOT, check_gone

DECILM_SAYS = (
    "This is the `vllm` form, that of NVIDIA's DeciLM: FFNs are as they were, attention is zero-padded to equally many "
    "query heads, so it computes the same. The figures above are the layered checkpoint's; that one's `result.json` "
    "and `units.json` have the whole configuration."
)


def decilm_shapes(config: PreTrainedConfig, family: Family, shapes: tuple[LayerShape, ...]) -> tuple[LayerShape, ...]:
    """The smallest shapes with equally many query heads that hold each layer, FFNs as they are.

    In each, KV heads divide the query heads. A layer without attention stays so, but the first: vLLM's class takes what
    enters it from there.

    Raises:
        InputError: no number of query heads up to twice the widest layer's will do.
    """
    most = max(shape.heads for shape in shapes)
    for heads in range(most, 2 * most + 1):
        wide = [_holding(shape, heads, first=number == 0) for number, shape in enumerate(shapes)]
        found = tuple(shape for shape in wide if shape is not None)
        if len(found) == len(shapes):
            widest = LayerShape(heads, max(shape.kv_heads for shape in found), shapes[0].ffn, shapes[0].head_dim)
            if heads % widest.kv_heads == 0 and accepts(config, family, widest):
                return found
    raise InputError(
        f"--format {VLLM}: {config.model_type}'s config class takes no number of query heads from {most} to {2 * most} "
        f"that KV heads divide in every layer: use --format {PADDED}."
    )


def _holding(shape: LayerShape, heads: int, *, first: bool) -> LayerShape | None:
    """A shape of so many query heads that holds a layer's, with the fewest KV heads; None where there is none."""
    if not shape.heads:
        return replace(shape, heads=heads, kv_heads=1) if first else shape
    repeats = shape.heads // shape.kv_heads
    for kv_heads in range(shape.kv_heads, heads // repeats + 1):
        if heads % kv_heads == 0:
            return LayerShape(heads, kv_heads, shape.ffn, shape.head_dim)
    return None


def check_decilm(config: PreTrainedConfig, model: str) -> None:
    """Refuse a model with layers that differ which DeciLM's class computes otherwise.

    Raises:
        InputError: why, and what to do instead.
    """
    windows = window_of(config) or "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if config.model_type in SAME and not windows:
        check_gone(config, model)
        return
    kind = config.model_type
    why = f"this is a {kind}: {WHY_NOT.get(kind, 'it is no Llama')}"
    if kind in SAME:
        why = "its attention has a window"
    served = kind in VLLM_ENGINE.takes[LAYERED]
    now = f"vLLM 0.32 serves the folder as it is: {VLLM_ENGINE.started_with(model, LAYERED)}. " if served else ""
    raise InputError(
        f"--format {VLLM}: DeciLM is a Llama, and {why}. {now}--format {PADDED} makes a stock checkpoint, for other "
        "versions."
    )
