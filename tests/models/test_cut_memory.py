"""A cut needs less memory than the training step before it, and leaves less behind."""

import pytest
import torch
from live import LiveBytes
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur import Pruner
from secateur.training.loss import causal_lm_loss


def peaks(*, shrink: bool) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Most bytes of each step of a run to 50 %; of each cut and the step before it; what was alive after each cut."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(layers=6), LoraConfig(r=4, target_modules="all-linear")).train()
    pruner = Pruner(model, sparsity=0.5, total_steps=8, prune_start=2, prune_end=6, frequency=2, shrink=shrink)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    ids = torch.randint(3, 99, (1, 16), generator=torch.Generator().manual_seed(3))
    steps, cuts, after = [], [], []
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        for _ in range(8):
            live.restart()
            loss = causal_lm_loss(model(input_ids=ids, use_cache=False), ids)
            loss.backward()
            del loss
            pruner.observe()
            optimizer.step()
            steps.append(live.peak)
            live.restart()
            if pruner.step(optimizer):
                cuts.append((live.peak, steps[-1]))
            optimizer.zero_grad()
            if len(cuts) > len(after):
                after.append(live.now)
    assert pruner.sparsity == pytest.approx(0.5, abs=0.05)
    return steps, cuts, after


def test_a_cut_takes_less_than_a_training_step() -> None:
    steps, cuts, after = peaks(shrink=True)
    masked, _, after_masked = peaks(shrink=False)
    assert len(cuts) == 2
    for cut, step in cuts:
        assert cut < step
    assert max(steps) <= max(masked)
    assert after[-1] < 0.75 * after_masked[-1], "what was cut off is still alive"
    assert steps[-1] < 0.75 * masked[-1]
