"""The learning rate over a run."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers.optimization import get_scheduler

from secateur.config.prune import PruneConfig
from secateur.training.trainer import training_arguments


def rates(total: int, **options: object) -> list[float]:
    """The rate of each optimiser step, relative to its peak."""
    config = PruneConfig(model="m", data="d", output="o", lr=1.0, **options)  # type: ignore[arg-type]
    args = training_arguments(config, total, torch.float32, Path("work"), torch.device("cpu"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, int(args.warmup_steps), total, args.lr_scheduler_kwargs or {}
    )
    found = []
    for _ in range(total):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_after_cuts_holds_the_rate_until_the_last_cut() -> None:
    found = rates(40, prune_end=0.6, lr_warmup=2)
    assert found[2:25] == [1.0] * 23
    assert all(later < earlier for earlier, later in pairwise(found[24:]))
    assert found[-1] < 0.02


@pytest.mark.parametrize("options", [{"lr_decay": "cosine"}, {"schedule": "one-shot"}])
def test_otherwise_it_falls_from_the_warm_up_on(options) -> None:
    found = rates(40, lr_warmup=2, **options)
    assert found == pytest.approx(rates(40, lr_warmup=2, lr_decay="cosine"))
    assert found[2] == 1.0
    assert all(later < earlier for earlier, later in pairwise(found[2:]))
