"""A model as lm-evaluation-harness asks it; importable only where the harness is installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional

from ..data.encoding import around, unended
from ..system.errors import all_faults
from .perplexity import token_faults


class PaddedHFLM(HFLM):
    """The harness's Hugging Face model, with batches padded to few lengths.

    Half-precision kernels are compiled anew for each shape on some CPUs. In a causal model what stands to the
    right changes nothing, so tokens are put there and their logits taken away; prompts that are continued get them
    on the left, with the attention mask that the harness gives its own padding.
    """

    multiple = 1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.after = around(self.tokenizer)[1]
        """What the tokenizer puts after a text: a prompt goes on, and an answer's score is that of its words."""
        self.cut_prompts: set[str] = set()
        """Prompts whose start did not fit into the context."""
        self.told: Callable[[int, int], None] = lambda done, of: None
        self.asked = self.answered = 0

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        for (prompt, _), context, continuation in requests:
            self._check([*context, *continuation])
            if len(context) + len(continuation) > self.max_length + 1:  # the last token is only predicted
                self.cut_prompts.add(prompt)
        with self._counted(len(requests)):
            return super()._loglikelihood_tokens(requests, *arguments, **options)

    def generate_until(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        with self._counted(len(requests)):
            return super().generate_until(requests, *arguments, **options)

    def _model_generate(self, context: Tensor, *arguments: Any, **options: Any) -> Any:
        found = super()._model_generate(context, *arguments, **options)
        self._answered(len(context))
        return found

    @contextmanager
    def _counted(self, requests: int) -> Iterator[None]:
        """Show how many of so many prompts are answered."""
        self.asked, self.answered = requests, 0
        self.told(0, requests)
        try:
            yield
        finally:
            self.told(requests, requests)  # some prompts were answered together
            self.asked = 0

    def _answered(self, prompts: int) -> None:
        if self.asked:
            self.answered = min(self.answered + prompts, self.asked - 1)
            self.told(self.answered, self.asked)

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        return unended(list(super().tok_encode(string, *arguments, **options)), self.after)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        length = inps.shape[1]
        padded = self._padded(length, max(self.max_length, length))
        logits = super()._model_call(functional.pad(inps, (0, padded - length)), attn_mask, labels)
        self._answered(len(inps))
        return logits[:, :length]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        ids, mask = super().tok_batch_encode(strings, padding_side, None, **options)
        ended = len(self.after)
        if ended and padding_side == "left" and all(row[-ended:] == self.after for row in ids.tolist()):
            ids, mask = ids[:, :-ended], mask[:, :-ended]
        if left_truncate_len is None:
            return ids, mask
        self._check(ids.flatten().tolist())
        lengths = mask.sum(dim=1).tolist()
        self.cut_prompts.update(p for p, n in zip(strings, lengths, strict=True) if n > left_truncate_len)
        ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        if padding_side == "left":
            more = self._padded(ids.shape[1], left_truncate_len) - ids.shape[1]
            ids = functional.pad(ids, (more, 0), value=self.tokenizer.pad_token_id)
            mask = functional.pad(mask, (more, 0))
        return ids, mask

    def _check(self, ids: list[int]) -> None:
        embeddings = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        all_faults(token_faults(torch.tensor(ids), embeddings, "the model"))

    def _padded(self, length: int, most: int) -> int:
        """`length` rounded up to the multiple."""
        return min(-(-length // self.multiple) * self.multiple, most)


def padded_model(
    model: Any,
    tokenizer: Any,
    *,
    batch_size: int,
    dtype: torch.dtype,
    multiple: int,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> PaddedHFLM:
    """`model` wrapped for the harness.

    Args:
        batch_size: prompts (with one of their choices) per forward pass.
        dtype: of the computation; losses are summed in float32 whatever it is.
        multiple: of tokens, to which batches are padded.
        told: how many prompts of how many are answered.
    """
    wrapped = PaddedHFLM(
        pretrained=model.eval(),
        tokenizer=tokenizer,
        device=str(next(model.parameters()).device),
        batch_size=batch_size,
        mixed_precision_dtype=None if dtype == torch.float32 else dtype,
        softmax_dtype=torch.float32,
    )
    wrapped.multiple, wrapped.told = multiple, told
    return wrapped
