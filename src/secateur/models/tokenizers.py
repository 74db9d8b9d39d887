"""Tokenizers by folder, GGUF file, hub id or embedded name."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..system.errors import InputError
from .guards import check_hub, guarded
from .source import ModelSource


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model, or out of its GGUF file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    check_hub(source)
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
    if source.is_local and not source.gguf_file and not any((Path(source.path) / n).is_file() for n in names):
        raise InputError(f"{source.path} has no tokenizer ({names[0]}): copy the base model's there.")
    options = {"gguf_file": source.gguf_file}
    return guarded(source, AutoTokenizer.from_pretrained, trust_remote_code, options, "tokenizer")
