"""Tiny models in memory, initialised wide: at the usual 0.02 a removed channel moves no logit visibly."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)
"""What transformers calls it: by the second name before 5.23."""
SPECIAL = ["<|end|>", "<|start|>", "<|unk|>"]


def tiny_llama(
    *,
    layers: int = 3,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 96,
    vocab: int = 128,
    tied: bool = False,
    bias: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    head_dim: int | None = None,
) -> LlamaForCausalLM:
    """A Llama with linears (and biases) of standard deviation 0.2 and norms around 1, in evaluation mode."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + values if "norm" in name else values)
    return model.to(dtype).eval()


def tiny_tokenizer(*, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline; <|end|> (id 0) ends a text and a turn."""
    symbols = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|start|>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny(folder: Path, *, max_shard_size: str = "5GB", **options: object) -> Path:
    """Write a tiny model (`tiny_llama`'s options) and its tokenizer to `folder`, which is returned."""
    tiny_llama(**options).save_pretrained(folder, max_shard_size=max_shard_size)  # type: ignore[arg-type]
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_t5(*, layers: int = 2, own_head: bool = False, gated: bool = True) -> T5ForConditionalGeneration:
    """A T5 of standard deviation 0.1 (its attention scores are not scaled), norms around 1, in evaluation mode.

    Args:
        own_head: an output head that is not the embedding, as T5 1.1 and Flan-T5 have it.
    """
    config = T5Config(
        vocab_size=128, d_model=48, d_kv=16, d_ff=96, num_layers=layers, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not own_head,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.all_tied_weights_keys.pop("lm_head.weight")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + values if "norm" in name else values)
    return model.eval()


def tiny_t5_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; <pad> is 0 and begins an answer, </s> is 1 and ends every text."""
    symbols = ["<pad>", "</s>", "<unk>", "\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_tiny_t5(folder: Path, **options: object) -> Path:
    """Write a tiny T5 (`tiny_t5`'s options) and its tokenizer to `folder`, which is returned."""
    tiny_t5(**options).save_pretrained(folder)  # type: ignore[arg-type]
    tiny_t5_tokenizer().save_pretrained(folder)
    return folder
