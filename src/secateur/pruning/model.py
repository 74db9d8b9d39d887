"""The model while it is pruned: which units are left, as slices or as masks, and what a cut does to its weights."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.depth import layer_prefixes
from ..architecture.discovery import find_units
from ..architecture.experts import expert_lists
from ..architecture.families import Family
from ..architecture.likeness import family_for
from ..architecture.units import Member, Pool, Units, base_linear, sides_of
from ..config.pruning import PruningOptions
from ..criteria import InputMoments
from ..models.original import check_cuttable, restore_
from ..models.source import ModelSource
from ..models.stored import untie_
from ..models.surgery import check_mergeable, removals, shrink_
from ..parallel.sharding import assign_, check_in_memory, gathered
from ..system.errors import InputError
from ..system.voice import speaks_python
from .checks import check_not_sharded, criterion_of
from .compensation.calibration import NONE_GIVEN, Calibration, calibration_of
from .compensation.sequence import refit_in_sequence
from .compensation.single import check_compensation, compensate_, rewritten_by
from .compensation.steps import check_repairable
from .masks import Masks, check_unmasked


class PrunedModel:
    """A model and what of its units is left.

    Cuts slice the model (`shrink`), or mask it: the input of `o` and `down` is zero at the units that went, which is
    the same function (LoRAPrune Eqs. 12, 13). What is out stays out.

    Attributes:
        units: the units at the start; all names and numbers of units refer to these.
        keep: pool name -> (units,) bool, which of them are left.
        live: the units as they physically are in the model now.
        living: pools of the units that are left, where they are in the model now.
        modules: path -> linear of a unit, as it is in the model now.
        layers: path -> layer that is a unit, likewise.
        masks: where cuts mask.
        calibration: what is refitted, or searched, on.
        calibrated_for: the option that asks for it, if any.
    Raises:
        InputError: an unsupported model or adapter; weights that cannot be cut or rewritten.
    """

    def __init__(self, model: nn.Module, options: PruningOptions, *, family: str | Family | None) -> None:
        self.model = model
        base, shrink, compensate = self.base, options.shrink, options.compensate
        untie_(base)
        layout = family_for(base, base.config.model_type, family)
        self._find_units = partial(find_units, base, layout, options.attention, options.kinds)
        self.units = self.live = self._find_units()
        criterion = criterion_of(options)
        if criterion.masks is not None:
            criterion.masks.check_places(options.criterion, self.units)
        self.shrink, self.compensate = shrink, compensate
        self._look_up_modules()
        check_unmasked(base.modules())
        check_in_memory(base)
        check_not_sharded(base, self.units)
        check_mergeable(model)
        check_cuttable(self.modules, shrink=shrink, compensate=compensate)
        check_compensation(compensate, self.units, self.modules)
        self.masks: Masks | None = None
        self.calibration: Calibration | None = None
        self.calibrated_for = "compensate='sequential'" if compensate == "sequential" else ""
        if "loss_without" in criterion.needs:
            self.calibrated_for = f"criterion={options.criterion!r}"
        self.living: tuple[Pool, ...] = self.units.pools
        self.keep = {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in self.units.pools}

    @property
    def base(self) -> PreTrainedModel:
        """The model without PEFT's wrapper."""
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    @property
    def live_keep(self) -> dict[str, Tensor]:
        """Pool name -> which of the units in `live` are left: all of them, unless masks stand in."""
        if not self.shrink:
            return self.keep
        return {pool.name: torch.ones(pool.size, dtype=torch.bool) for pool in self.live.pools}

    def check_ready(self) -> None:
        """Whether a cut could be made: the linears have the sizes that are known here, and what it needs is there.

        Raises:
            InputError: something else has cut them; there is nothing to calibrate on.
        """
        if self.calibrated_for and self.calibration is None:
            raise InputError(NONE_GIVEN.format(asked=self.calibrated_for))
        for member in (member for pool in self.live.pools for member in pool.members if member.scored):
            size = sides_of(base_linear(self.modules[member.linear]))[member.dim]
            if size != member.size:
                raise InputError(
                    f"{member.linear} has {size} {'columns' if member.dim else 'rows'} where this pruner knows "
                    f"{member.size}: another pruner has cut the model, so use one at a time."
                )

    def put_masks_on(self) -> None:
        """Where cuts mask: every unit has its place in a mask from here on, and none is out."""
        if not self.shrink:
            self.masks = Masks(self.units, self.modules, self.layers)

    def cut_(
        self,
        keep: dict[str, Tensor],
        optimizer: torch.optim.Optimizer | None,
        moments: dict[str, InputMoments] | None = None,
    ) -> dict[str, Tensor]:
        """Leave only `keep`, and let what stays take over.

        Args:
            optimizer: its moments shrink with the weights.
            moments: of the linears' inputs, for compensation; without them none takes place.
        Returns:
            pool name -> (units,) bool, which of the units that were in the model stay in it (all with masks).
        """
        before, self.keep = self.keep, keep
        stay = {name: mask[before[name]] if self.shrink else mask for name, mask in keep.items()}
        if moments is not None and self.compensate == "sequential":
            assert self.calibration is not None, "it is asked for before a step is scored"
            batches, dtype = self.calibration.batches, self.calibration.dtype
            refit_in_sequence(self.model, self.live, stay, batches, dtype=dtype)
        elif moments is not None and self.compensate != "none":
            for gate, kept, gone in self._losing(before, stay):
                compensate_(
                    self.compensate, self.modules[gate.linear], moments[gate.linear], gate.entries(kept),
                    gate.entries(gone),
                )  # fmt: skip
        if self.masks is not None:
            self.masks.update(keep)
            left = removals(self.units, keep)
            pools = (pool.only(keep[pool.name]) for pool in self.units.pools if keep[pool.name].any())
            self.living = tuple(pool.without(left) for pool in pools)
        else:
            shrink_(self.model, self.live, stay, optimizer)
            self.live = self._find_units()
            self.living = self.live.pools
            self._look_up_modules()
        return stay

    def _losing(self, before: dict[str, Tensor], stay: dict[str, Tensor]) -> Iterator[tuple[Member, Tensor, Tensor]]:
        """Gate, which of its units stay and which go, for every gate of a pool that loses some."""
        for pool in self.live.pools:
            kept = stay[pool.name]
            gone = ~kept if self.shrink else before[pool.name] & ~kept
            if gone.any():
                for gate in pool.gates:
                    yield gate, kept, gone

    def rewritten(self) -> dict[str, nn.Parameter]:
        """Name -> base parameter that compensation changes: an adapter alone does not say the model any more."""
        return rewritten_by(self.compensate, self.live, self.modules)

    def state(self) -> dict[str, Any]:
        """What of the model a checkpoint of LoRA's weights does not hold."""
        return {
            "keep": dict(self.keep),
            "chosen": {path: experts.chosen for path, experts in expert_lists(self.model).items()},
            "compensated": {name: gathered(parameter.detach()) for name, parameter in self.rewritten().items()},
        }

    def load_state_(self, state: dict[str, Any]) -> None:
        """Put back what `state` says beside the units that are left, for which `cut_` is there.

        Where `compensated` is None, weights are as the cut has left them.
        """
        for path, experts in expert_lists(self.model).items():
            experts.chosen = state["chosen"][path].clone()
        if state["compensated"] is not None:
            for path, parameter in self.rewritten().items():
                assign_(parameter, state["compensated"][path])

    def restore_(self, source: ModelSource, *, trust_remote_code: bool) -> None:
        """Put the original weights in a quantised base's place, on the CPU; see `models.original.restore_`."""
        stay = {} if self.masks else removals(self.units, self.keep)
        restore_(self.model, stay, source, trust=trust_remote_code)
        self._look_up_modules()
        if self.masks is not None:
            self.masks.remove()
            self.masks = Masks(self.units, self.modules, self.layers)
            self.masks.update(self.keep)

    def close(self) -> None:
        """Take the masks off the model."""
        if self.masks is not None:
            self.masks.remove()

    def _look_up_modules(self) -> None:
        base = self.base
        self.modules = {path: base.get_submodule(path) for path in self.live.linears}
        self.layers = {path: base.get_submodule(path) for path in layer_prefixes(self.live).values()}


class Shown:
    """What a pruner shows of its model, and is told of what it is given."""

    pruned: PrunedModel

    @speaks_python()
    def calibrate(self, batches: Iterable[Mapping[str, Tensor]], dtype: torch.dtype | None = None) -> None:
        """Hand over what `compensate="sequential"` fits to and `allocation="search"` compares on.

        Before the first step, also of a resumed run.

        Args:
            batches: what the model is given, such as {"input_ids": (sequences, tokens)}, some thousand tokens in all;
                of several processes each gives its own, and as many. They are kept.
            dtype: what the model computes in under autocast, as in training; by default its weights' own precision.
        Raises:
            InputError: there are none, or one is not what a model is given.
        """
        found = calibration_of(batches, dtype)
        if self.pruned.compensate == "sequential":
            check_repairable(self.pruned.model, self.pruned.live, found.batches[0], dtype)
        self.pruned.calibration = found

    @property
    def units(self) -> Units:
        """The units at the start; all names and numbers of units refer to these."""
        return self.pruned.units

    @property
    def keep(self) -> dict[str, Tensor]:
        """Pool name -> (units,) bool, which of them are left."""
        return self.pruned.keep

    @property
    def live(self) -> Units:
        """The units as they physically are in the model now."""
        return self.pruned.live

    @property
    def live_keep(self) -> dict[str, Tensor]:
        """Pool name -> which of the units in `live` are left: all of them, unless masks stand in."""
        return self.pruned.live_keep

    @property
    def masks(self) -> Masks | None:
        """The masks, where cuts mask."""
        return self.pruned.masks

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Path -> linear of a unit, as it is in the model now."""
        return self.pruned.modules

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable parameters that is gone."""
        return self.units.removed_params(self.keep) / self.units.prunable_params

    @property
    def removed_params(self) -> int:
        """Parameters that are gone."""
        return self.units.removed_params(self.keep)
