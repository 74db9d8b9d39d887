"""Perplexity equals a naive loop with the stock model."""

import math

import pytest
import torch
from tiny import tiny_llama

from secateur import evaluate as evaluate_module
from secateur.errors import InputError, NumericsError
from secateur.evaluate import perplexity


def test_equals_a_naive_loop(monkeypatch) -> None:
    monkeypatch.setattr(evaluate_module, "CHUNK_POSITIONS", 7)
    model = tiny_llama().train()
    ids = torch.randint(3, 99, (205,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, ids, seq_len=32, batch_size=4, dtype=torch.float32)
    assert model.training  # restored
    model.eval()
    losses = [model(part.unsqueeze(0), labels=part.unsqueeze(0)).loss.item() for part in ids[:192].split(32)]
    assert found.segments == 6
    assert found.tokens_scored == 6 * 31
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    spread = torch.tensor(losses).std().item() / math.sqrt(6)
    assert found.stderr_nll == pytest.approx(spread, rel=1e-3)


def test_batch_size_does_not_matter() -> None:
    model = tiny_llama()
    ids = torch.randint(3, 99, (160,))
    one, many = (perplexity(model, ids, seq_len=16, batch_size=b, dtype=torch.float32).perplexity for b in (1, 5))
    assert one == pytest.approx(many, rel=1e-5)


def test_refusals() -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="20 tokens are fewer than one segment of 32"):
        perplexity(model, torch.zeros(20, dtype=torch.long), seq_len=32, dtype=torch.float32)
    with pytest.raises(InputError, match="--seq-len 1024 is longer than the model's 512 positions"):
        perplexity(model, torch.zeros(2048, dtype=torch.long), seq_len=1024, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    ids = torch.full((64,), 7)
    ids[40] = 5
    with pytest.raises(NumericsError, match="the loss of segment 1 is nan"):
        perplexity(model, ids, seq_len=32, dtype=torch.float32)
