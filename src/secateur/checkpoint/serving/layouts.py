"""Which layers that differ llama.cpp holds as they are: what its `deci` is, a Llama with a list of sizes."""

from transformers import PreTrainedConfig

from ...architecture.stock import LAYERS_KEY, window_of
from ...config.formats import SMALL_BLOCK
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


PERIODS = {"gemma2": (2,), "gemma3_text": range(2, 100), "smollm3": (4,)}
"""Model types -> every how-manieth layer is unlike the others in llama.cpp, which reads no list of them."""


def rotation_notes(config: PreTrainedConfig) -> list[str]:
    """What to say of a rotation that grows with the text, which llama.cpp's converter passes over in silence."""
    rope, longest = getattr(config, "rope_parameters", None) or {}, getattr(config, "max_position_embeddings", None)
    if rope.get("rope_type") != "dynamic" or config.model_type.startswith("hunyuan"):  # theirs it works out
        return []
    return [
        f"llama.cpp has no dynamic rotation: beyond {longest} tokens it predicts otherwise than transformers does, so "
        f"keep its context to that (-c {longest})"
    ]


def check_period(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model whose layers with a window, or without rotary positions, come at other distances than llama.cpp
    takes for granted, as they do when layers have gone.

    Raises:
        InputError: names the key that says so.
    """
    periods = PERIODS.get(config.model_type)
    key = "no_rope_layers" if config.model_type == "smollm3" else "layer_types"
    listed = getattr(config, key, None)
    if periods is None or not listed:
        return
    others = [kind in ("full_attention", 0) for kind in listed]
    if not any([(number + 1) % period == 0 for number in range(len(others))] == others for period in periods):
        raise InputError(
            f"model {name!r}: llama.cpp takes each so-manieth layer of a {config.model_type} for another kind, and by "
            f"its {key} the kinds come otherwise, as where layers have gone: serve it with transformers or vLLM."
        )


def check_gone(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model without some attention or FFN whose last linear's bias is still added there.

    Raises:
        InputError: names the layer.
    """
    for number, size in enumerate(getattr(config, LAYERS_KEY, None) or ()):
        for what, key, bias in (
            ("attention", "num_attention_heads", "attention_bias"),
            ("FFN", "intermediate_size", "mlp_bias"),
        ):
            if not size[key] and getattr(config, bias, False):
                raise InputError(
                    f"model {name!r}: its layer {number} has no {what} but its bias, which engines leave out with it: "
                    "export it with --format padded, which keeps it."
                )


def sizes_beside_width(config: PreTrainedConfig) -> list[tuple[int, int, int]] | None:
    """The same sizes for every layer of a stock Qwen2 whose heads are not its width together; None of all others.

    llama.cpp's own `qwen2` takes the size of a head from the width; `deci`, which computes the same, is told it.
    """
    if config.model_type != "qwen2" or not heads_are_gone(config) or window_of(config) is not None:
        return None
    return [
        (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    ] * config.num_hidden_layers


def heads_are_gone(config: PreTrainedConfig) -> bool:
    """Whether the heads of a stock model are not its width together."""
    head_dim = getattr(config, "head_dim", None)
    return bool(head_dim) and head_dim * config.num_attention_heads != config.hidden_size


def held_sizes(sizes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, channels) of each layer as `deci` needs them.

    It reads the size of a head off the first layer, so that one has a head of zeros where its attention is gone. Where
    an FFN is gone it would pass over the layer's attention, too, so one of zeros stands there.
    """
    return [
        (*((heads, kv_heads) if heads or number else (1, 1)), channels or SMALL_BLOCK)
        for number, (heads, kv_heads, channels) in enumerate(sizes)
    ]


def check_depth(config: PreTrainedConfig, name: str) -> None:
    """As `check_period` and, where layers differ, `check_layers`.

    Raises:
        InputError: likewise.
    """
    check_period(config, name)
    if getattr(config, LAYERS_KEY, None):
        check_layers(config, name)


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
        check_gone(config, name)
        return
    raise InputError(
        f"model {name!r}: its layers differ, and llama.cpp holds such layers of Llama's kind alone; this is a {kind}: "
        f"{why}. Write equal layers first (secateur export --format padded) and make the GGUF file of those, or prune "
        "it with --allocation uniform."
    )
