"""Which layers that differ llama.cpp holds as they are: what its `deci` is, a Llama with a list of sizes."""

from transformers import PreTrainedConfig

from ...architecture.stock import window_of
from ...system.errors import InputError

SAME = ("llama", "mistral", "qwen2")
"""Model types that compute what `deci` does: RMS norms, rotary positions over the whole head, SwiGLU; Qwen2's biases of
q, k and v are tensors that it takes."""
WHY_NOT = {
    "qwen3": "it norms queries and keys of each head",
    "gemma": "it scales its embeddings and its FFN has another activation",
    "gemma2": "it norms each sub-layer's output too, and limits its logits",
    "gemma3_text": "it norms queries, keys and each sub-layer's output, and some layers have a window",
    "granite": "it multiplies embeddings, attention and logits by factors",
    "smollm3": "some of its layers have no rotary positions",
    "olmo": "its norms have no weights",
    "olmo2": "it norms each sub-layer's output",
    "phi3": "its projections lie in one linear each",
}


def check_layers(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model with layers that differ which `deci` would compute otherwise.

    Raises:
        InputError: why, and what to do instead.
    """
    kind = config.model_type
    if kind not in SAME:
        why = WHY_NOT.get(kind, "it is no Llama")
    elif (window := window_of(config)) is not None or "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    ):
        why = f"its attention has a window ({window or config.sliding_window} tokens)"
    elif config.hidden_act != "silu":
        why = f"its FFN's activation is {config.hidden_act}"
    else:
        return
    raise InputError(
        f"model {name!r}: its layers differ, and llama.cpp holds such layers of Llama's kind alone; this is a {kind}: "
        f"{why}. Write equal layers first (secateur export --format padded) and make the GGUF file of those, or prune "
        "it with --allocation uniform."
    )
