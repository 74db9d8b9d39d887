"""A model as lm-evaluation-harness asks it; importable only where the harness is installed."""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional


class PaddedHFLM(HFLM):
    """The harness's Hugging Face model, with batches padded to few lengths.

    Half-precision kernels are compiled anew for each shape on some CPUs. In a causal model what stands to the
    right changes nothing, so tokens are put there and their logits taken away.
    """

    multiple = 1
    full_contexts = 0
    """Batches as long as the context: the harness has cut the start of a prompt there, or nearly."""

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        length = inps.shape[1]
        self.full_contexts += length >= self.max_length
        padded = min(-(-length // self.multiple) * self.multiple, max(self.max_length, length))
        logits = super()._model_call(functional.pad(inps, (0, padded - length)), attn_mask, labels)
        return logits[:, :length]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        self.full_contexts += max_length >= self.max_length
        return super()._model_generate(context, max_length, stop, **options)


def padded_model(model: Any, tokenizer: Any, *, batch_size: int, dtype: torch.dtype, multiple: int) -> PaddedHFLM:
    """`model` wrapped for the harness.

    Args:
        batch_size: prompts (with one of their choices) per forward pass.
        dtype: of the computation; losses are summed in float32 whatever it is.
        multiple: of tokens, to which batches are padded.
    """
    wrapped = PaddedHFLM(
        pretrained=model.eval(),
        tokenizer=tokenizer,
        device=str(next(model.parameters()).device),
        batch_size=batch_size,
        mixed_precision_dtype=None if dtype == torch.float32 else dtype,
        softmax_dtype=torch.float32,
    )
    wrapped.multiple = multiple
    return wrapped
