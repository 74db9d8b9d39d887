"""Tokenizers made on the spot whose pipelines are unlike each other, as files and as folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def bytes_file(before: list[Any] | None = None, *, prefix: bool = False, post: str | None = None) -> Tokenizer:
    """One token per byte, and one of each of some words with a blank before; 2024 is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("2", "0"), ("2", "4"), ("20", "24"), ("Ġ", "c"), ("a", "t"), ("Ġc", "at"), ("Ġ", "Ġ")]
    words = [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    file = Tokenizer(models.BPE(vocabulary, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    file.pre_tokenizer = pre_tokenizers.Sequence([*before, level]) if before else level
    file.decoder = decoders.ByteLevel()
    return finished(file, post)


def sentence_file(
    *, prefix: bool, legacy: bool = False, post: str | None = None, rules: Sequence[tuple[str, str]] = ()
) -> Tokenizer:
    """As sentencepiece models are converted: `▁` for blanks, bytes for what is no token. `rules` come before ours."""
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "c"), ("a", "t"), ("▁c", "at"), ("2", "0"), ("2", "4")]
    merges = [*rules, *merges]
    letters = ["▁", *map(chr, range(33, 127)), *(f"<0x{i:02X}>" for i in range(256))]
    words = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    file = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        start = [normalizers.Prepend("▁")] if prefix else []
        file.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    else:
        file.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=False)
    file.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(file, post)


def finished(file: Tokenizer, post: str | None) -> Tokenizer:
    """With its special tokens, and what its post-processor puts around a text, such as `<s> $A </s>`."""
    file.add_special_tokens(SPECIAL)
    if post:
        pairs = [(token, file.token_to_id(token)) for token in SPECIAL if token in post.split()]
        file.post_processor = processors.TemplateProcessing(single=post, special_tokens=pairs)
    return file


def save_tokenizer(folder: Path, file: Tokenizer, named: str | None = "PreTrainedTokenizerFast", **more: Any) -> Path:
    """`tokenizer.json` and `tokenizer_config.json`, whose class is `named`, in a folder that may hold a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("tokenizer*"):
        old.unlink()
    file.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **more}
    settings |= {"tokenizer_class": named} if named else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
