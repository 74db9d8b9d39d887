"""Which linears LoRA reaches, known from a model without weights."""

from collections.abc import Iterable
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architecture.experts import expert_lists
from ..config.lora import LoraOptions
from ..system.errors import InputError
from .adapter import check_fits, lora_config_of, read_adapter
from .surgery import check_mergeable, lora_layers


def check_coverage(linears: Iterable[str], covered: Iterable[str]) -> None:
    """Refuse LoRA that leaves out a linear of a unit, where units are scored from LoRA's gradients.

    Raises:
        InputError: names the first that is left out.
    """
    there = set(covered)
    missing = [path for path in linears if path not in there]
    if missing:
        raise InputError(
            f"LoRA does not cover {missing[0]}"
            + (f" and {len(missing) - 1} other linears" if len(missing) > 1 else "")
            + ", whose units are scored from LoRA gradients: leave --targets out, so that every linear of "
            "every unit gets LoRA, or choose another --criterion."
        )


def tell_transposed_(lora: LoraConfig, model: nn.Module) -> None:
    """Say to PEFT that GPT-2 holds weights as inputs x outputs, which it would find out itself and warn of."""
    targets = lora.target_modules or ()
    turned = [path for path, module in model.named_modules() if isinstance(module, Conv1D)]
    names = [path for path in turned if isinstance(targets, str) or any(f".{path}".endswith(f".{t}") for t in targets)]
    lora.fan_in_fan_out = bool(names)


def planned_lora(empty: PreTrainedModel, config: LoraOptions, lora: LoraConfig) -> tuple[str, ...]:
    """Paths of the linears that a run will have LoRA on. `empty` is wrapped for it, and used up.

    Args:
        empty: the model on the meta device.
        lora: what the run makes; `--adapter` has a configuration of its own.
    Raises:
        InputError: `--targets` names no module of the model, or the adapter does not fit it.
    """
    adapter = read_adapter(config.adapter) if config.adapter else None
    if adapter is not None:
        lora = lora_config_of(adapter)
    else:
        _check_targets(empty, config.targets)
        tell_transposed_(lora, empty)
    lora.init_lora_weights = True  # the others look at the weights
    experts = {path: len(found) for path, found in expert_lists(empty).items()} if adapter is None else {}
    for path in experts:
        del cast(nn.ModuleList, empty.get_submodule(path))[1:]  # all of a layer get what its first one gets
    try:
        model = get_peft_model(empty, lora, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if adapter is not None:
            raise InputError(f"--adapter {adapter.name}: not a LoRA adapter that fits this model ({reason}).") from None
        raise unfit_lora(empty, config, reason) from None
    assert isinstance(model, PeftModel)
    check_mergeable(model)
    if adapter is not None:
        check_fits(adapter, model)
    return tuple(path for first in lora_layers(model) for path in _in_all(first, experts))


def unfit_lora(model: nn.Module, config: LoraOptions, reason: str) -> InputError:
    """The error for LoRA that PEFT will not add, in terms of what the user wrote."""
    if config.targets:
        return InputError(f"--targets {' '.join(config.targets)}: {reason}")
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return InputError(f"LoRA cannot go on every linear of a {kind} ({reason}): name those that it can with --targets.")


def _in_all(first: str, experts: dict[str, int]) -> list[str]:
    """The path of a linear of a layer's first expert in each of them; of another linear that path alone."""
    place = first.rpartition(".0.")[0]
    return [first.replace(f"{place}.0.", f"{place}.{number}.") for number in range(experts.get(place, 0))] or [first]


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """PEFT itself passes over a name that matches nothing when another one does."""
    paths = [path for path, _ in model.named_modules()]
    unknown = [t for t in targets if not any(p == t or p.endswith("." + t) for p in paths)]
    if unknown:
        raise InputError(f"--targets {' '.join(unknown)}: the model has no such module: give names such as q_proj.")
