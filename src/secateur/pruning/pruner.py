"""The pruner: observes gradients, averages scores, and cuts units on schedule.

Knows nothing of Trainer, data or files. In a loop:

    loss.backward(); pruner.observe(); optimizer.step(); pruner.step(optimizer); optimizer.zero_grad()
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..architecture.families import Family
from ..checkpoint.export import ExportReport, export_checkpoint
from ..checkpoint.probe import default_probe
from ..config.options import part_of
from ..config.pruning import PruningOptions, ScoringOptions
from ..models.coverage import check_coverage
from ..models.devices import without_autocast
from ..models.source import ModelSource, resolve_model
from ..models.surgery import check_mergeable
from ..parallel.distributed import (
    announce,
    check_agreement,
    check_weights,
    share_counts,
    trained_weights,
    whole_weights,
)
from ..parallel.replicas import unwrapped, watch_for_wrappers_
from ..speed.costs import PARAMETERS, Costs
from ..system.errors import InputError
from ..system.voice import speaks_python
from .budget import Budget
from .checks import NO_LENGTH, Loop, check_model, check_sizes, check_steps, criterion_of, nothing_known, options_of
from .cut import Cut
from .model import PrunedModel, Shown
from .schedule import Schedule, make_schedule, tell_unfinished
from .scorer import Scorer
from .search import Allocator
from .state import load_state, restoring, save_state


class Pruner(Shown):
    """Prunes a PEFT LoRA model's attention heads and FFN channels while it is trained.

    At each cut the model shrinks: weights, LoRA factors and optimiser moments are sliced, so later steps do less work.
    With `shrink=False` it is masked until export: the input of `o` and `down` is zero at the units that went, which is
    the same function (LoRAPrune Eqs. 12, 13). What is out stays out.

    Args:
        model: a `PeftModel` with plain LoRA, or (for criteria without LoRA gradients) any causal LM.
        options: a `PruningOptions`, or none for its defaults.
        total_steps: optimiser steps of the run; may be left to `begin`, which the Trainer callback calls.
        family: layout of a model type that secateur does not know.
        scoring: `ScoringOptions` (or a `secateur.Scoring`), in the place of what `options` says of the same.
        costs: what a cost table says of the model (`secateur.speed`); `sparsity` is then of its layers' time.
        given: any option of `PruningOptions` by its name (`sparsity=0.5`, ...), in the place of what `options` says;
            each is explained there. With `shrink`, `step` needs the optimiser.

    Attributes:
        pruned: the model as it is now; `units`, `keep` and `live` are its own.
        scorer: what is known of its units.
        allocator: how much goes from where, as is and (`allocation="search"`) as found at the first cut.
        schedule: when; None until `begin`.
    Raises:
        InputError: unsupported model or adapter, unreachable sparsity, options that contradict.
    """

    @speaks_python()
    def __init__(
        self,
        model: nn.Module,
        options: PruningOptions | None = None,
        *,
        total_steps: int | None = None,
        family: str | Family | None = None,
        scoring: ScoringOptions | None = None,
        costs: Costs | None = None,
        **given: Any,
    ) -> None:
        options = options_of(options, scoring, family, given)
        self.options = options
        self.model = model = unwrapped(model)
        check_model(model)
        if self.replaces:
            watch_for_wrappers_(model)
        criterion = criterion_of(options)
        self.pruned = PrunedModel(model, options, family=family)
        self.allocator = Allocator(self.pruned, options, costs or PARAMETERS)
        check_sizes(self.pruned.base, self.units, self.budget, options, family)
        if "lora_grad" in criterion.needs:  # also of a linear that `score_linears` does not score by
            covered = [path for path, module in self.modules.items() if isinstance(module, LoraLayer)]
            check_coverage(self.units.linears, covered)
        criterion.options(options.criterion, part_of(ScoringOptions, options))
        self.pruned.put_masks_on()  # before the scorer: what is out has no input to speak of
        self.scorer = Scorer(self.pruned, options, self.budget)
        self._loop, self.total_steps, self.steps_done = Loop(), 0, 0
        self.schedule: Schedule | None = None
        if total_steps is not None:
            self.begin(total_steps)
        self.scores_before_cuts: dict[str, Tensor] = {}
        """The averages of all units just before the first cut."""
        self.cuts: list[Cut] = []

    @property
    def budget(self) -> Budget:
        """What goes by the end."""
        return self.allocator.budget

    @property
    def replaces(self) -> bool:
        """Whether cuts put other parameters in the place of those that are trained."""
        return self.options.shrink

    @speaks_python()
    def begin(self, total_steps: int) -> None:
        """Fix the schedule for a run of `total_steps` optimiser steps."""
        self.total_steps = check_steps(total_steps)
        self.schedule = make_schedule(self.options, self.total_steps)

    @speaks_python()
    @without_autocast()
    def observe(self) -> None:
        """Score all units from the gradients that training has now, into the moving average (Eq. 11).

        Call it once per optimiser step, on the accumulated (and averaged) gradients, before the update.

        Raises:
            NumericsError: a score is NaN or infinite; names the pool and the step.
        """
        if self.schedule is None:
            raise InputError(NO_LENGTH)
        if self.replaces:
            watch_for_wrappers_(self.model)
        self._loop.observe(self.model)
        if (step := self.steps_done + 1) > self.schedule.last_cut:
            return
        self.scorer.observe(step, self.schedule)
        self._loop.took(self.model)

    def skip(self) -> None:
        """Leave a step out of the averages, in place of `observe`: its gradients are not finite."""
        assert self.schedule is not None, "begin() comes first"
        self._loop.skip()
        self.scorer.skip(self.steps_done + 1, cutting=self.schedule.is_cut(self.steps_done + 1))

    @property
    def scores(self) -> dict[str, Tensor]:
        """Pool name -> (units,) averaged scores; of a unit that went, the one that it went with."""
        return self.scorer.scores

    @speaks_python()
    @without_autocast()
    def step(self, optimizer: torch.optim.Optimizer | None = None) -> Cut | None:
        """Count an optimiser update, and cut when the schedule says so. Returns the cut, if any.

        Args:
            optimizer: the one that trains the model; needed when `shrink` is on, as its moments shrink too.
        Raises:
            DisagreementError: at a cut, one step after it or at the run's last step, processes hold other weights.
        """
        if self.schedule is None:
            raise InputError(NO_LENGTH)
        self._loop.step(optimizer, cuts=self.options.shrink)
        self.steps_done += 1
        if not self.schedule.is_cut(self.steps_done):
            if self.steps_done == self.total_steps or self.schedule.is_cut(self.steps_done - 1):
                check_weights(self.model, self.steps_done)
            return None
        if self.options.shrink and optimizer is None:
            raise InputError("a cut shrinks the model and the optimiser's state: call pruner.step(optimizer).")
        if not self.scorer.knows_something:
            self._loop.check_observed()
            raise nothing_known(self.steps_done)
        self.scorer.share_scores()
        if not self.cuts:
            self.scores_before_cuts = {name: scores.clone() for name, scores in self.scores.items()}
        if self.allocator.searches:
            self.allocator.search_(self.pruned, self.scorer)
        before, keep = self.keep, self.budget.select(self.scores, self.keep, self.schedule.progress(self.steps_done))
        check_agreement(keep, self.steps_done, trained_weights(self.model))
        self._cut(keep, optimizer, compensating=True)
        if self.options.compensate != "none":
            check_agreement(keep, self.steps_done, whole_weights(self.rewritten().items()))
        cut = Cut.between(self.steps_done, before, keep, self.scores, self.sparsity)
        self.cuts.append(cut)
        if self.steps_done >= self.schedule.last_cut:
            self.scorer.stop()
        return cut

    @speaks_python()
    def export(
        self,
        output: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        probe_ids: Tensor | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        """Write the merged, sliced model as a checkpoint, verified in a fresh process. The model is not changed.

        Of several processes one writes; where others call this too, their weights are compared with its own.
        Args:
            probe_ids: (1, tokens) to compare logits on; by default a few sentences through the tokenizer.
        Raises:
            InputError, VerificationError: as `export_checkpoint`.
            DisagreementError: processes hold other weights.
        """
        check_mergeable(self.model)  # merge_adapter() may have been called since
        tell_unfinished(self.schedule, self.steps_done)
        base, compare = self.pruned.base, announce(self.model)
        vocabulary = base.config.get_text_config().vocab_size
        probe_ids = default_probe(tokenizer, vocabulary) if probe_ids is None else probe_ids
        return export_checkpoint(
            self.model,
            self.live,
            self.live_keep,
            Path(output),
            probe_ids=probe_ids,
            dtype=base.dtype,
            tokenizer=tokenizer,
            model_class=self.options.model_class,
            overwrite=overwrite,
            before=compare,
        )

    @speaks_python()
    def restore(self, source: str | ModelSource, *, trust_remote_code: bool = False) -> None:
        """After training on a quantised base: put the original weights in its place, on the CPU. Then `export`.

        PEFT's own merge does not know such a model.

        Args:
            source: the model that was quantised: a folder or hub id.
        Raises:
            InputError, VerificationError: as `models.original.restore_`.
        """
        self.scorer.stop()
        source = resolve_model(source) if isinstance(source, str) else source
        self.pruned.restore_(source, trust_remote_code=trust_remote_code)
        self.scorer.put_masks_on()

    def close(self) -> None:
        """Take everything that watches or masks off the model."""
        self.scorer.close()
        self.pruned.close()

    def rewritten(self) -> dict[str, nn.Parameter]:
        """Name -> base parameter that compensation changes: an adapter alone does not say the model any more."""
        return self.pruned.rewritten()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on from here (tensors, ints, lists)."""
        own = {"steps_done": self.steps_done, "scores_before_cuts": dict(self.scores_before_cuts)}
        parts = self.allocator.state() | self.pruned.state() | self.scorer.state()
        return own | {"cuts": [vars(cut) for cut in self.cuts]} | parts

    @speaks_python()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masks or shapes, averages, compensated weights and step count; `InputError` where the state is of a
        model with other units."""
        if {n: len(m) for n, m in state["keep"].items()} != {n: len(m) for n, m in self.keep.items()}:
            raise InputError("the pruner's saved state belongs to a model with other units: start a new run.")
        self.steps_done = int(state["steps_done"])
        self.scores_before_cuts = dict(state["scores_before_cuts"])
        self.cuts = [Cut(**cut) for cut in state["cuts"]]
        self.allocator.load_state(state)
        self._cut({name: mask.clone() for name, mask in state["keep"].items()}, None)
        self.pruned.load_state_(state)
        self.scorer.load_state(state)

    def share(self) -> None:
        """All processes hold the mean of what each has seen; every one must call it before one of them saves."""
        self.scorer.share_scores()
        self.scorer.statistics.average_()
        share_counts(self.model)

    def save(self, folder: Path) -> None:
        """Write the state as pruner.safetensors (masks, averages, rewritten weights) and pruner.json (the rest)."""
        save_state(self.state_dict(), folder)

    @speaks_python()
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote: masks or shrunk shapes, averages, rewritten weights, step count."""
        with restoring(folder):
            self.load_state_dict(load_state(folder))

    def _cut(
        self, keep: dict[str, Tensor], optimizer: torch.optim.Optimizer | None, *, compensating: bool = False
    ) -> None:
        """Make the model what `keep` says, and what is watched what the model then is."""
        pools, before = self.live.pools, self.keep
        stay = self.pruned.cut_(keep, optimizer, self.scorer.statistics.moments if compensating else None)
        self.scorer.follow_cut(pools, stay, {name: mask[before[name]] for name, mask in keep.items()})
