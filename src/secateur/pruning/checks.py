"""What can be known before a pruner starts: whether its arguments are what they must be."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftMixedModel, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.discovery import check_class
from ..architecture.families import Family
from ..architecture.layout import WHOLE_KINDS
from ..architecture.likeness import check_same, is_tested
from ..architecture.units import Pool, Units
from ..checkpoint.dry import check_export, empty_copy
from ..config.options import with_given
from ..config.pruning import PruningOptions, ScoringOptions
from ..config.schedule import ScheduleOptions
from ..criteria import CRITERIA, Criterion
from ..criteria.masks import NO_SEARCHED_MASKS
from ..models.surgery.moments import check_states
from ..parallel.sharding import is_sharded
from ..system.errors import InputError, NumericsError
from .allocation import shape_by_quota
from .budget import Budget

ONLY_LORA = "plain LoRA is what merges into the pruned weights, so make it with a LoraConfig."


def check_model(model: Any) -> None:
    """Whether this can be pruned: as `check_kind` and `check_adapter_kind`."""
    check_kind(model)
    check_adapter_kind(model)


def check_kind(model: Any) -> None:
    """Whether this is a model at all that could be pruned.

    Raises:
        InputError: it is not; says what to give.
    """
    if isinstance(model, PeftMixedModel):
        raise InputError("the model is a PeftMixedModel, of adapters of several kinds: make it with get_peft_model.")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base, torch._dynamo.OptimizedModule):
        raise InputError(
            "the model under LoRA is in torch.compile's wrapper: call model.compile(), which compiles it in place, or "
            "compile the model with its LoRA."
        )
    if not isinstance(base, PreTrainedModel):
        raise InputError(
            f"the model is a {type(base).__name__}: give a model of transformers, as "
            "AutoModelForCausalLM.from_pretrained loads it, or one with LoRA (get_peft_model)."
        )


def check_adapter_kind(model: nn.Module) -> None:
    """Whether what PEFT has added to a model is plain LoRA that is at work.

    Raises:
        InputError: names what it is instead.
    """
    for name in model.active_adapters if isinstance(model, PeftModel) else ():
        configs: Any = model.peft_config
        config = configs[name]
        if config.peft_type != "LORA":
            raise InputError(f"the adapter {name!r} is {str(config.peft_type).rpartition('.')[2]}: {ONLY_LORA}")
    for path, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not hasattr(layer, "base_layer"):
            continue
        if not isinstance(layer, LoraLayer) or isinstance(layer, ParamWrapper):
            kind = "LoRA on a parameter (target_parameters)" if isinstance(layer, LoraLayer) else type(layer).__name__
            raise InputError(f"{path} has {kind}: {ONLY_LORA}")
        if layer.disable_adapters:
            raise InputError(
                f"{path}: its LoRA is disabled, and it would be merged all the same: call "
                "model.base_model.enable_adapter_layers(), or prune the model without it (model.unload())."
            )


def options_of(options: Any, scoring: Any, family: Any, given: dict[str, Any]) -> PruningOptions:
    """The options of a `Pruner` from its arguments.

    Raises:
        InputError: names those that are not what they must be.
    """
    if scoring is not None and not isinstance(scoring, ScoringOptions):
        raise InputError(f"scoring is {scoring!r}: give a secateur.Scoring, such as Scoring(reduce='abs').")
    if family is not None and not isinstance(family, str | Family):
        raise InputError(f"family is {family!r}: give the name of a layout, such as 'llama', or a secateur.Family.")
    given = (vars(scoring) if scoring else {}) | given
    options = with_given(PruningOptions() if options is None else options, given, PruningOptions)
    check_bounds(options)
    if options.sparsity is None or not 0 < options.sparsity < 1:
        raise InputError(f"sparsity is {options.sparsity}: give a number between 0 and 1, such as 0.2.")
    return options


def check_steps(total_steps: Any) -> int:
    """A run's length in whole steps.

    Raises:
        InputError: no whole number, or less than 1.
    """
    whole = isinstance(total_steps, int | float | Tensor) or hasattr(total_steps, "__index__")
    if not whole or isinstance(total_steps, bool) or total_steps != total_steps or total_steps < 1:
        raise InputError(f"total_steps is {total_steps!r}: give the number of optimiser steps, at least 1.")
    if total_steps != int(total_steps):
        raise InputError(f"total_steps is {total_steps!r}: give a whole number of optimiser steps.")
    return int(total_steps)


NO_LENGTH = "the pruner does not know the run's length: pass total_steps, or call begin(steps)."


def check_bounds(options: ScheduleOptions) -> None:
    """Whether cuts end after they begin, as far as it is known without the run's length.

    Raises:
        InputError: they do not.
    """
    start, end = options.prune_start, options.prune_end
    stepwise = getattr(options, "k1", None) is not None
    if options.schedule != "one-shot" and not stepwise and type(start) is type(end) and start >= end:
        raise InputError(f"--prune-start {start} is not before --prune-end {end}: move them apart.")


class Loop:
    """Sees that a loop calls in the right order: `observe`, the optimiser's update, `step`."""

    def __init__(self) -> None:
        self._observed = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._updates = self._early = 0
        self._seen = self._used = Mark()

    def observe(self, model: nn.Module) -> None:
        """`observe` begins.

        Raises:
            InputError: it was called for these gradients already.
        """
        if self._seen.is_on(model.parameters()):
            raise InputError(
                "observe() was called before in this step: call it once for each update, when all gradients of the "
                "step are accumulated, then optimizer.step() and the pruner's step()."
            )
        self._observed, self._early, self._updates = True, self._updates, 0

    def check_observed(self) -> None:
        """At a cut that knows nothing.

        Raises:
            InputError: `observe` has never been called.
        """
        if not self._observed:
            raise InputError("observe() has not been called before the first cut: call it after backward().")

    def took(self, model: nn.Module) -> None:
        """`observe` is done."""
        self._seen = Mark(model.parameters())

    def skip(self) -> None:
        """A step without `observe`, that is right."""
        self._observed, self._early, self._seen = True, 0, Mark()

    def step(self, optimizer: Any, *, cuts: bool) -> None:
        """`step` begins.

        Args:
            cuts: the optimiser's state is to be cut.
        Raises:
            InputError: it is not the time; or the optimiser keeps what cannot be cut.
        """
        early, late = self._early, self._updates
        self._early, self._updates, self._seen = 0, 0, Mark()
        if isinstance(optimizer, AcceleratedOptimizer):
            if not optimizer.gradient_state.sync_gradients:
                raise InputError(
                    "step() was called while gradients are accumulated, where no update is made: call observe() and "
                    "step() under `if accelerator.sync_gradients:`."
                )
            optimizer = optimizer.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            return
        if optimizer is not self._optimizer:
            optimizer.register_step_post_hook(self._updated)
            if cuts:
                check_states(optimizer)
            self._optimizer = optimizer
        elif early and not late and has_gradient(optimizer) and not self._used.is_on(trained_by(optimizer)):
            raise InputError(
                "step() was called before the optimiser's update, which would lack the gradients of what is cut: call "
                "observe(), optimizer.step(), then the pruner's step()."
            )

    def _updated(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._updates += 1
        self._used = Mark(trained_by(optimizer))


class Mark:
    """Knows a step's gradients again, by the first of them, and keeps none alive."""

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        gradient = first_gradient(parameters)
        self._of = None if gradient is None else weakref.ref(gradient)

    def is_on(self, parameters: Iterable[Tensor]) -> bool:
        """Whether these parameters still have that gradient, accumulated further or not."""
        gradient = self._of and self._of()
        return gradient is not None and gradient is first_gradient(parameters)


def first_gradient(parameters: Iterable[Tensor]) -> Tensor | None:
    return next((p.grad for p in parameters if p.grad is not None), None)


def trained_by(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return first_gradient(trained_by(optimizer)) is not None


def criterion_of(options: PruningOptions) -> Criterion:
    """The criterion that the options name.

    Raises:
        InputError: there is none of that name, or what is registered under it is none.
    """
    found = CRITERIA[options.criterion]
    if getattr(found, "masks", None) is not None and options.allocation == "search":
        raise InputError(NO_SEARCHED_MASKS.format(criterion=options.criterion))
    if not isinstance(found, Criterion):
        raise InputError(
            f"what is registered as {options.criterion!r} is a {type(found).__name__}: register a "
            "secateur.criteria.Criterion(function, summary, needs={...})."
        )
    found.check_units(options.criterion, options.kinds)
    return found


def check_not_sharded(base: nn.Module, units: Units) -> None:
    """Refuse to take whole layers or blocks out of a model whose layers lie in several processes.

    Raises:
        InputError: they do.
    """
    if units.of_kind(*WHOLE_KINDS) and any(map(is_sharded, base.modules())):
        raise InputError("the base is sharded, and no layer or block of it can go: prune heads and channels.")


def nothing_known(step: int) -> NumericsError:
    """What there is to say at a cut where no step before it could be scored."""
    return NumericsError(
        f"step {step}: no step before the first cut had finite gradients, so nothing is known of any unit: lower --lr, "
        "or compute in float32."
    )


def check_sizes(
    base: PreTrainedModel, units: Units, budget: Budget, options: PruningOptions, family: str | Family | None
) -> None:
    """Whether the model's class builds the sizes that will be left, where the layout is not one that is tested here.

    Raises:
        InputError: it builds others, so the result could not be written.
    """
    config = base.config
    if is_tested(config, family) or (empty := empty_copy(base, units)) is None:
        return  # without a copy its modules were put there by hand: its class does not say what it is written as
    if options.allocation == "uniform" and budget.quota and not units.family.ffn_listed:
        check_class(config, units.family, shape_by_quota(units, budget.quota), options.model_class)
    check_export(empty, units, budget.example(), options.model_class)
    check_same(config, units, budget.example())


def check_scores(name: str, pool: Pool, scores: Any) -> Tensor:
    """What a criterion has returned, where it is one score for each unit.

    Raises:
        InputError: it is not.
    """
    if not isinstance(scores, torch.Tensor) or scores.shape != (pool.size,):
        what = f"a tensor {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise InputError(
            f"the criterion {name!r} gave {what} for {pool.name}, which has {pool.size} units: return a tensor "
            f"({pool.size},), one score for each."
        )
    return scores
