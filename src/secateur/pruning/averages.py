"""Units' scores averaged over steps (LoRAPrune Eq. 11)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..architecture.units import Pool
from ..parallel.distributed import average_
from ..system.errors import NumericsError


class Averages:
    """Moving averages Ḡ_t = λ·Ḡ_{t−1} + (1−λ)·Ĝ_t of all units' scores, on the host.

    Args:
        sizes: pool name -> how many units it has at the start.
        ema: λ; `alike` in its place gives all steps the same weight (one-shot).
        relative: divide each step's scores by their mean over all units first: squared scores grow with the square of
            the gradient, and the steps just after a cut would outweigh the others.
        dtype: of the averages.
    """

    def __init__(
        self, sizes: Mapping[str, int], *, ema: float, alike: bool, relative: bool, dtype: torch.dtype
    ) -> None:
        self.scores = {name: torch.zeros(size, dtype=dtype) for name, size in sizes.items()}
        """Pool name -> (units,), for units that went the average that they went with."""
        self._ema, self._alike, self._relative, self._dtype = ema, alike, relative, dtype

    def add(
        self,
        fresh: Mapping[Pool, Tensor],
        keep: Mapping[str, Tensor],
        step: int,
        *,
        since: int = 0,
        anew: bool,
        apart: bool,
    ) -> None:
        """Take in what a step's units score.

        Args:
            fresh: scores of the units that are left.
            keep: pool name -> which these are.
            since: the step after which steps that count alike begin.
            anew: forget the past: these scores are not of one step.
            apart: processes have scored different things, so the mean over them says how large a step's scores are.
        Raises:
            NumericsError: a score is NaN or infinite; names the pool and the step. No average has changed then.
        """
        found = list(self._on_the_host(fresh))
        for pool, scores in found:
            if not torch.isfinite(scores).all():
                raise NumericsError(
                    f"step {step}: the scores of {pool.name} are not finite. The loss or a gradient overflowed: "
                    "lower --lr, or compute in float32 (--dtype float32)."
                )
        past = 0.0 if anew else (step - since - 1) / (step - since) if self._alike else self._ema
        unit = _mean([scores for _, scores in found], apart) if self._relative else torch.ones(())
        for pool, scores in found:
            average, left = self.scores[pool.name], keep[pool.name]
            average[left] = past * average[left] + (1 - past) * scores / unit

    def share(self) -> None:
        """Take the mean over processes, which averaged what each saw itself."""
        average_(list(self.scores.values()))

    def load(self, scores: Mapping[str, Tensor]) -> None:
        """Go on from saved averages."""
        self.scores = {name: saved.to(self._dtype, copy=True) for name, saved in scores.items()}

    def _on_the_host(self, scores: Mapping[Pool, Tensor]) -> Iterator[tuple[Pool, Tensor]]:
        """Scores, brought over from the device at once: a GPU is waited for once a step."""
        device = next(iter(scores.values())).device
        joined = torch.cat([score.to(device, self._dtype) for score in scores.values()]).cpu()
        yield from zip(scores, joined.split([len(score) for score in scores.values()]), strict=True)


def _mean(scores: list[Tensor], apart: bool) -> Tensor:
    """Mean over all units (and processes); 1 where all are 0."""
    mean = torch.cat(scores).mean()
    if apart:
        average_([mean])
    return torch.where(mean > 0, mean, torch.ones_like(mean))
