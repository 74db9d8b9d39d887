"""A run's data as its model reads it: text in blocks for a causal model, pairs for an encoder-decoder."""

from typing import TYPE_CHECKING, Any

from ..config.run import RunConfig
from ..system.errors import InputError
from .pairs import PairForm, Pairs, evaluation_pairs, form_of, training_pairs
from .tokens import Blocks, evaluation_tokens, training_blocks

if TYPE_CHECKING:
    import torch


def training_data(config: RunConfig, model_config: Any, tokenizer: Any) -> Blocks | Pairs:
    """What a run trains on. Errors as of `training_blocks` and `training_pairs`."""
    if model_config.is_encoder_decoder:
        return training_pairs(config.data, tokenizer, _form(config, model_config, tokenizer), seed=config.seed)
    return training_blocks(
        config.data, tokenizer, seq_len=config.seq_len, response_only=config.response_only, packing=config.packing,
        seed=config.seed, bos=config.bos, system=config.system_prompt,
    )  # fmt: skip


def evaluation_data(
    config: RunConfig, model_config: Any, tokenizer: Any
) -> tuple["torch.Tensor | Pairs", dict[str, Any]]:
    """What `--eval-data` is, and a record of it.

    Raises:
        InputError: as of `evaluation_tokens` and `evaluation_pairs`; less text than one segment.
    """
    assert config.eval_data is not None
    if model_config.is_encoder_decoder:
        form = _form(config, model_config, tokenizer, config.eval_seq_len)
        return evaluation_pairs(config.eval_data, tokenizer, form, max_tokens=config.eval_tokens)
    seq_len = config.eval_seq_len or config.seq_len
    ids, info = evaluation_tokens(
        config.eval_data, tokenizer, max_tokens=config.eval_tokens, seq_len=seq_len, bos=config.bos
    )
    if len(ids) < seq_len:
        raise InputError(
            f"--eval-data {config.eval_data}: {len(ids)} tokens, fewer than one segment of {seq_len}: lower "
            "--eval-seq-len or give more text."
        )
    return ids, info


def _form(config: RunConfig, model_config: Any, tokenizer: Any, seq_len: int | None = None) -> PairForm:
    longest = seq_len or config.seq_len
    return form_of(model_config, tokenizer, longest, config.target_seq_len or longest)
