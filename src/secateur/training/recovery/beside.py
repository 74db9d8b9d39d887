"""What of the base a run changes, beside LoRA: it is held wide while it trains, and is in every checkpoint of the run.

A step of AdamW is about the learning rate, whatever the gradient: 1e-4 at a weight of 0.03. bfloat16 has 256 steps
between a number and its double, so of such a weight's updates most would round to nothing. Held in float32 none does.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from ...architecture.units import Units, base_linear
from ...models.surgery import is_embedding, lora_layers, plain
from ...models.surgery.gains import NAME as GAIN
from ...models.surgery.gains import add_gains_
from ...system.errors import InputError

FILE = "beside.safetensors"
MERGED = "merged"
"""Frozen, and changed where LoRA begins anew."""


class Beside:
    """The parameters of a base model that a run trains or rewrites.

    Args:
        model: with LoRA. What is to be trained is widened to float32 and asks for gradients from here on.
        units: of the model.
        also: what is trained, of `config.lora.ALSO`.
        restarts: whether LoRA will be merged into the base, which is then widened, too.

    Attributes:
        kinds: name of a parameter in the base model -> what it is: of `also`, or `MERGED`.
    """

    def __init__(self, model: nn.Module, units: Units, also: Collection[str], *, restarts: bool = False) -> None:
        self.model = model
        if "gains" in also:
            add_gains_(_base(model), units)
        parts = parts_of(model, units)
        self.kinds = dict.fromkeys(parts["lora"], MERGED) if restarts else {}
        self.kinds |= {name: part for part in also for name in parts[part]}
        self._narrow: dict[str, torch.dtype] = {}
        for name, parameter in self.parameters.items():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                self._narrow[name] = parameter.dtype
                parameter.data = parameter.data.float()
            parameter.requires_grad_(self.kinds[name] != MERGED)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, as the model has it now: a cut puts smaller ones in place."""
        return {name: p for name, p in _named(self.model) if name in self.kinds}

    def counts(self) -> dict[str, int]:
        """What is trained -> its parameters now."""
        found = dict.fromkeys(kind for kind in self.kinds.values() if kind != MERGED) | {}
        return {
            kind: sum(p.numel() for name, p in self.parameters.items() if self.kinds[name] == kind) for kind in found
        }

    def narrow_(self) -> None:
        """After training: round all to the precision that it came in, with which the rest of the model computes."""
        for name, parameter in self.parameters.items():
            parameter.data = parameter.data.to(self._narrow.get(name, parameter.dtype))

    def save(self, folder: Path) -> None:
        """Write the parameters into a training checkpoint."""
        if self.kinds:
            save_file({name: p.detach().contiguous() for name, p in self.parameters.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into a model that has been cut as it was then.

        Raises:
            InputError: other parameters, or other shapes.
        """
        held = self.parameters
        if not held:
            return
        found: Mapping[str, Tensor] = load_file(folder / FILE)
        if {name: p.shape for name, p in held.items()} != {name: value.shape for name, value in found.items()}:
            raise InputError(f"--resume: {folder / FILE} is of another model: start anew with --overwrite.")
        for name, parameter in held.items():
            parameter.data.copy_(found[name])


def parts_of(model: nn.Module, units: Units) -> dict[str, list[str]]:
    """What can be trained beside LoRA, or LoRA can be merged into -> names of parameters in the base model."""
    base = _base(model)
    layers = lora_layers(base)
    with_lora = [path for path, layer in layers.items() if not is_embedding(layer)]
    weights = {id(base_linear(base.get_submodule(path)).weight) for path in (*units.linears, *with_lora)}
    merged = {id(layer.get_base_layer().weight) for layer in layers.values()}
    named = _named(base)
    linears = {plain(path): isinstance(module, nn.Linear | Conv1D) for path, module in base.named_modules()}
    rows = [name for name, p in named if p.dim() == 1 and name.endswith((".weight", ".bias"))]
    return {
        "norms": [name for name in rows if not linears[name.rpartition(".")[0]]],
        "gains": [name for name, _ in named if name.endswith(f".{GAIN}")],
        "biases": [name for name in rows if linears[name.rpartition(".")[0]]],
        "weights": [name for name, parameter in named if id(parameter) in weights],
        "lora": [name for name, parameter in named if id(parameter) in merged],
    }


def check_parts(base: nn.Module, units: Units, also: Collection[str]) -> None:
    """Refuse to train what a model does not have.

    Raises:
        InputError: names it.
    """
    parts = parts_of(base, units)
    for part in also:
        if part != "gains" and not parts[part]:
            raise InputError(f"--train-also {part}: the model has none: leave it out.")


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The base model's parameters, without LoRA's, by the names that they have without `torch.compile`."""
    return [(plain(name), parameter) for name, parameter in _base(model).named_parameters() if ".lora_" not in name]


class BesideCallback(TrainerCallback):
    """Puts what is changed beside LoRA into Trainer's checkpoints; comes before the callback that seals them."""

    def __init__(self, beside: Beside) -> None:
        self.beside = beside

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.should_save:
            assert args.output_dir is not None
            self.beside.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
