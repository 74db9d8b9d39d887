"""Encoder-decoders."""

from .sizes import T5

TYPES: dict[str, dict[str, object]] = {
    "t5": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5/plain": {**T5, "feed_forward_proj": "relu"},
    "mt5": T5,
    "umt5": T5,
}  # fmt: skip
