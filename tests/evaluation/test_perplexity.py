"""Perplexity equals a naive loop with the stock model."""

import math

import pytest
import torch
from tiny import tiny_llama

from secateur.evaluation import perplexity as evaluate_module
from secateur.evaluation.perplexity import perplexity
from secateur.system.errors import InputError, NumericsError


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
    assert found.mean_nll == pytest.approx(sum(losses) / 6, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    spread = torch.tensor(losses).std().item() / math.sqrt(6)
    assert found.stderr_nll == pytest.approx(spread, rel=1e-3)


def test_a_long_text_tells_how_far_it_is() -> None:
    found: list[tuple[int, int]] = []
    perplexity(
        tiny_llama(), torch.zeros(165, dtype=torch.long), seq_len=32, batch_size=2, dtype=torch.float32,
        told=lambda *counts: found.append(counts),
    )  # fmt: skip
    assert found == [(0, 5), (2, 5), (4, 5), (5, 5)]


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


def test_a_segment_needs_a_token_to_predict() -> None:
    for length in (0, 1):
        with pytest.raises(InputError, match=f"--seq-len is {length}: .* at least 2"):
            perplexity(tiny_llama(), torch.zeros(20, dtype=torch.long), seq_len=length, dtype=torch.float32)


def test_training_mode_comes_back_after_a_failure() -> None:
    model = tiny_llama().train()
    model.lm_head.register_forward_pre_hook(lambda module, args: [][0])
    with pytest.raises(IndexError):
        perplexity(model, torch.full((64,), 99), seq_len=32, dtype=torch.float32)
    assert model.training


def test_half_precision_runs_under_autocast_and_is_named() -> None:
    model, seen = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    ids = torch.randint(3, 99, (128,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, ids, seq_len=32, dtype=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert found.to_dict()["dtype"] == "bfloat16"
    exact = perplexity(model, ids, seq_len=32, dtype=torch.float32)
    assert found.mean_nll == pytest.approx(exact.mean_nll, rel=0.01)  # bfloat16 keeps 8 bits
