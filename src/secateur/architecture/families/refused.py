"""Causal model types of transformers that have no family, and why: data only.

`refusal` is what a user reads. A type is here or in `FAMILIES`, never in both.
"""

_REFUSED = {
    "it is an encoder: the type stands among the causal models of transformers for the halves of older pairs": (
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
        "xmod",
    ),
    "it is the decoder of an encoder-decoder, which reads what the encoder says": (
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody",
        "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper",
    ),
    "it is recurrent alone: it has no attention heads, and its channels carry a state from token to token": (
        "falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm",
    ),
    "it has layers that read pictures among those that read text, under one width, and text would leave them out of "
    "the scores": ("mllama",),
    "it drafts for another model, whose keys and values it reads, so there is no text to train it on": (
        "gemma4_assistant", "gemma4_unified_assistant",
    ),
    "its loss begins behind the tokens of a picture, so that it cannot be trained on text alone": ("git",),
    "norms run over its FFN's channels and over its heads, so what is left would be scaled otherwise": ("bitnet",),
    "it lets every token look at those after it, so a loss over its text means nothing, and with its cache it says "
    "other things than without": ("cpmant",),
    "it reads bytes in patches, through three models of different sizes": ("blt",),
    "it goes through two stacks of layers in turns, which one config describes": ("hrm_text",),
    "it attends by hashing at random, so no two passes compute the same, and trains on texts of one length alone": (
        "reformer",
    ),
    "it sees the tokens that it is to say unless a permutation hides them, so a loss over plain text means nothing": (
        "xlnet",
    ),
}  # fmt: skip
"""Why -> the types."""

REFUSED = {name: why for why, names in _REFUSED.items() for name in names}
"""Model type -> why."""


def refusal(model_type: str) -> str:
    """What to say of a type that is refused, and what can be done instead."""
    return (
        f"model type {model_type!r} cannot be pruned: {REFUSED[model_type]}. secateur families --all lists what can; "
        "to describe a layout yourself, see docs/add-a-family.md."
    )
