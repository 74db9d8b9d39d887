"""How a GGUF file's text is split, where transformers passes over what the file says of it."""

import logging
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf import gguf_tokenizer_mapping

from ..architecture.gguf import ORIGINAL, Gguf
from ..system.errors import InputError

log = logging.getLogger("secateur")

MODEL, PRE, PREFIX = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"
AS_GPT2 = (
    "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "gigachat",
    "roberta-bpe", "exaone4", "mellum", "modern-bert", "a.x-4.0", "mpt", "olmo", "jais", "trillion", "granite-docling",
)  # fmt: skip
"""Names of pipelines that llama.cpp splits as GPT-2 does, which is what transformers falls back to."""
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Of those that split digits off first, one by one."""
NOT_SAID = ("default", None)
SPLITS: Any = getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", {})


def follow_splits_(tokenizer: PreTrainedTokenizerBase, file: Gguf) -> PreTrainedTokenizerBase:
    """Make a tokenizer that transformers built from a GGUF file split texts as the file says.

    Raises:
        InputError: the file names a pipeline that neither transformers nor this module knows.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    kind, name = file.metadata.get(MODEL), file.metadata.get(PRE)
    if kind == "llama" and file.metadata.get(PREFIX) is False and _prefixes(backend):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if kind != "gpt2" or name in SPLITS or name in AS_GPT2:
        return tokenizer
    if name in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name in NOT_SAID:
        log.warning("%s does not say how text is split (%s): it is split as for GPT-2", file.path, PRE)
    else:
        raise InputError(
            f"{file.path}: {PRE} is {name!r}, and transformers would split text as for GPT-2, so tokens would be "
            f"others. {ORIGINAL}"
        )
    return tokenizer


def _prefixes(backend: Tokenizer) -> bool:
    """Whether a text gets a blank in front."""
    parts = backend.pre_tokenizer.pre_tokenize_str("a") if backend.pre_tokenizer else []
    return backend.normalizer is None and bool(parts) and parts[0][0] != "a"
