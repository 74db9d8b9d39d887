"""Text that checkpoints are compared on."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import encode

PROBE = (
    "A gardener prunes a tree so that what is left can grow. The cut is made close to the branch, with a sharp blade, "
    "and never all at once: a few twigs this year, a few the next. Whoever cuts too much in one season finds the tree "
    "weak in the following spring, while one that was never cut at all bears small and sour fruit."
)


def default_probe(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> Tensor:
    """(1, tokens) to compare models on: a paragraph of English, or without a tokenizer every token in turn."""
    if tokenizer is None:
        return torch.arange(min(vocabulary, 256)).unsqueeze(0)
    return torch.tensor([encode(tokenizer, PROBE)])
