"""Which linears LoRA reaches, known from a model without weights."""

import copy
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architecture.experts import expert_lists
from ..architecture.experts.lora import aims, misread, name_experts_
from ..architecture.quantised import bits_of, entries
from ..architecture.units import sides_of
from ..config.lora import LoraOptions
from ..system.errors import InputError
from .adapter import check_fits, fitted, lora_config_of, read_adapter, tell_unknown
from .adapter_extras import check_carried
from .surgery import check_mergeable, lora_layers

ROUTER = re.compile(r"(^|\.)(gate|router|classifier)(\.|$)")
"""Names of what chooses experts, where it is a linear."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Config keys that count experts."""
LITTLE = 0.01
"""Share of the parameters that need not be mentioned: a router, a convolution."""
NARROW = 0.05
"""Share of the linears' parameters up to which those that are too narrow for a rank are left out of it."""


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


def weight_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Path of each module with weights of its own, embeddings and the head left out -> their entries."""
    outside = {model.get_input_embeddings(), model.get_output_embeddings()}
    found = {
        path: sum(entries(p) for p in module.parameters(recurse=False) if p.dim() > 1)
        for path, module in model.named_modules()
        if module not in outside and not isinstance(module, nn.Embedding)
    }
    return {path: size for path, size in found.items() if size}


def unreached_words(sizes: dict[str, int], covered: Iterable[str], parameters: int) -> str | None:
    """Which part of a model's parameters LoRA does not reach, where it is more than a hundredth.

    Args:
        sizes: as `weight_sizes`.
        covered: paths of the linears with LoRA.
        parameters: of the whole model.
    """
    there = set(covered)
    places: Counter[str] = Counter()
    for path, size in sizes.items():
        if path not in there:
            places[_kind(path)] += size
    share = sum(places.values()) / parameters
    if share < LITTLE:
        return None
    most = [f"{path} ({size / parameters:.0%})" for path, size in places.most_common(3)]
    more = f" and {len(places) - 3} other kinds of modules" if len(places) > 3 else ""
    return f"LoRA does not reach {share:.0%} of the parameters: {', '.join(most)}{more}"


def not_adapted(model: PreTrainedModel, rank: int) -> list[str]:
    """Paths of linears that an adapter of this rank leaves out unless they are named: routers, those that compute
    something else than a product, and those that are narrower than it, where these are little beside the others."""
    head, text = model.get_output_embeddings(), model.config.get_text_config(decoder=True)
    counts = {getattr(text, key, None) for key in EXPERTS}
    linears = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    narrow = [path for path, linear in linears.items() if min(sides_of(linear)) < rank]
    if sum(map(_size, map(linears.get, narrow))) > NARROW * sum(map(_size, linears.values())):
        narrow = []
    routers = [path for path, linear in linears.items() if ROUTER.search(path) and sides_of(linear)[0] in counts]
    others = [path for path, linear in linears.items() if not is_product(linear)]
    return list(dict.fromkeys(narrow + routers + others))


def is_product(linear: nn.Linear | Conv1D) -> bool:
    """Whether a linear gives its input times its weight; a subclass may do more, or so by groups, and is tried."""
    if type(linear).forward in (nn.Linear.forward, Conv1D.forward) or bits_of(linear):
        return True
    small, x, weight = copy.copy(linear), torch.randn(2, 5), torch.randn(3, 5)
    small._parameters = {"weight": nn.Parameter(weight), "bias": None}
    try:
        found = small.forward(x)
    except Exception:  # whatever its own code does of sizes that it was not made for
        return False
    return isinstance(found, Tensor) and found.shape == (2, 3) and torch.allclose(found, x @ weight.T, atol=1e-5)


def _size(linear: nn.Linear | Conv1D | None) -> int:
    return 0 if linear is None else math.prod(sides_of(linear))


def uncalled_linears(model: nn.Module, ids: Tensor) -> list[str]:
    """Paths of linears that have no part in the logits: another module reads the weight itself (`dt_proj` of a Mamba
    layer), or what it gives goes elsewhere (BERT's pooler). LoRA there would not be used.

    Args:
        ids: (1, tokens)
    """
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    given: list[tuple[str, Tensor]] = []

    def follow(path: str, output: object) -> Tensor | None:
        # A router may be a linear that gives more than its product, which LoRA could not be added to.
        if not isinstance(output, Tensor):
            return None
        given.append((_peers(path), output if output.requires_grad else output.detach().requires_grad_()))
        return given[-1][1].clone()  # which may be changed in place

    hooks = [m.register_forward_hook(lambda *a, path=path: follow(path, a[-1])) for path, m in linears.items()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()  # where some modules compute with other weights (AltUp's, clamped)
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits.float().sum()
            outputs = [output for _, output in given]
            gradients = torch.autograd.grad(logits, outputs, allow_unused=True) if outputs else ()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.requires_grad_()
        for module, mode in modes.items():
            module.training = mode
    used = {kind for (kind, _), gradient in zip(given, gradients, strict=True) if gradient is not None}
    return [path for path in linears if _peers(path) not in used]


def _peers(path: str) -> str:
    """One name for a linear of all experts: a few tokens do not reach each."""
    return _kind(path) if ".experts." in path else path


def _kind(path: str) -> str:
    """A module's path without the numbers of layers and experts."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


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
        check_carried(adapter.name, lora)
        tell_unknown(adapter)
        adapter, lora = fitted(adapter, lora, empty)
    else:
        _check_targets(empty, config.targets)
        name_experts_(lora, empty)
        tell_transposed_(lora, empty)
    lora.init_lora_weights = True  # the others look at the weights
    experts = {path: len(found) for path, found in expert_lists(empty).items()} if adapter is None else {}
    for path in experts:
        del cast(nn.ModuleList, empty.get_submodule(path))[1:]  # all of a layer get what its first one gets
    refused = (TypeError, LookupError, AttributeError) if adapter is not None else ()  # values of other types
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*base_model_name_or_path", UserWarning)  # said by `GivenAdapter.words`
            model = get_peft_model(empty, lora, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, *refused) as error:
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
    there = {t for t in targets if any(p == a or p.endswith("." + a) for a in aims(t, model) for p in paths)}
    unknown = [t for t in targets if t not in there]
    if taken := sorted(misread(targets, model)) if not expert_lists(model) else []:
        raise InputError(
            f"--targets {' '.join(taken)}: PEFT takes these names for experts of a {model.config.model_type}, which "
            "lie in one tensor a layer: name other linears, or leave --targets out."
        )
    if unknown:
        raise InputError(f"--targets {' '.join(unknown)}: the model has no such module: give names such as q_proj.")
