"""The LoRA adapter that a run starts from (`--adapter`): read and checked before any weights of the model are."""

import json
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..architecture.experts import expert_lists
from ..architecture.experts.lora import STACKED, for_experts_apart, stacked_shapes
from ..config.adapt import AdaptConfig
from ..config.options import flag
from ..config.run import RunConfig
from ..system.errors import InputError, all_faults, out_of_memory
from ..system.quiet import quiet_transformers
from ..system.reading import PARSER_ERRORS
from ..system.terminal.streams import safe
from .adapter_extras import MERGE_FIRST, WEIGHTS, carry_, extra_places

log = logging.getLogger("secateur")

C = TypeVar("C", bound=RunConfig)
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class GivenAdapter:
    """A plain LoRA adapter's configuration and the sizes of its tensors."""

    name: str
    """As given."""
    rank: int
    alpha: float
    dropout: float
    rslora: bool
    targets: tuple[str, ...]
    """Names of the linears, without their paths (PEFT lists whole ones); none where the configuration has a pattern."""
    patterned: bool
    """Whether its configuration gives some layers other ranks."""
    shapes: dict[str, tuple[int, ...]]
    """Tensor name -> shape, from the file's header."""
    base: str = ""
    """The model that its configuration says it was trained on."""
    unknown: tuple[str, ...] = ()
    """Settings that this version of PEFT does not know, and passes over."""

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the tensors that are no factors: biases (`bias="all"`, `"lora_only"`), embeddings."""
        return tuple(name for name in self.shapes if ".lora_" not in name)

    @property
    def ranks(self) -> list[int]:
        """The ranks that its layers have, ascending, each once."""
        return sorted({shape[0] for name, shape in self.shapes.items() if ".lora_A." in name}) or [self.rank]

    @property
    def words(self) -> str:
        alpha = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha
        words = f"LoRA starts from {self.name}: {rank_words(self.ranks)}, alpha {alpha}, dropout {self.dropout}"
        words += f"; with {len(self.extras)} tensors of the base model's own" if self.extras else ""
        return words + (f"; trained on {self.base}" if self.base else "")

    def to_dict(self) -> dict[str, Any]:
        """What `result.json` says of it."""
        return {"name": Path(self.name).name, "rank": self.rank, "ranks": self.ranks, "alpha": self.alpha}


def rank_words(ranks: list[int]) -> str:
    """`rank 16`, or `ranks from 2 to 16`."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks from {ranks[0]} to {ranks[-1]}"


def read_adapter(name: str) -> GivenAdapter:
    """Read an adapter's configuration and the header of its weights.

    Raises:
        InputError: no adapter there, a damaged one, or one that is no plain LoRA.
    """
    folder, words = Path(name).expanduser(), f"--adapter {name}"
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, rank = found["peft_type"], int(found.get("r", 0))
        alpha, dropout = float(found.get("lora_alpha", 8)), float(found.get("lora_dropout", 0.0))
        targets = found.get("target_modules")
        leaves = _leaves(targets) if isinstance(targets, list) else ()
        if kind == "LORA" and (rank < 1 or not isfinite(alpha) or not 0 <= dropout < 1):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{words}: no {CONFIG} there: give a PEFT adapter's folder.") from None
    except (OSError, *PARSER_ERRORS, KeyError, TypeError, AttributeError):
        raise InputError(f"{words}: {CONFIG} cannot be read: copy it again.") from None
    if kind != "LORA" or found.get("use_dora"):
        kind = "DoRA" if kind == "LORA" else kind
        raise InputError(f"{words} is {kind}: only plain LoRA has factors and ranks that can be pruned: {MERGE_FIRST}")
    return GivenAdapter(
        name,
        rank,
        alpha,
        dropout,
        bool(found.get("use_rslora")),
        leaves,
        bool(found.get("rank_pattern")),
        _shapes(folder, words),
        str(found.get("base_model_name_or_path") or ""),
        tuple(sorted(key for key in found.keys() - {field.name for field in fields(LoraConfig)} if found[key])),
    )


def starting_from_adapter(config: C) -> C:
    """The options with what `--adapter` decides in the place of their defaults, so that records say what was run.

    Raises:
        InputError: one was given and says otherwise.
    """
    if not config.adapter:
        return config
    adapter = read_adapter(config.adapter)
    decided: dict[str, Any] = {
        "rank": adapter.rank,
        "alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "dropout": adapter.dropout,
        "rslora": adapter.rslora,
        "targets": adapter.targets,
    }
    faults = []
    if isinstance(config, AdaptConfig):  # its --rank and --alpha are those at the end, and the scaling stays
        decided = {"init_rank": adapter.rank, **{key: decided[key] for key in ("dropout", "rslora", "targets")}}
        if "alpha" in config.given:
            faults.append(f"--alpha contradicts --adapter {config.adapter}, whose scaling stays: leave --alpha out.")
    for key, value in decided.items():
        asked: Any = getattr(config, key)
        same = _leaves(asked) == value if key == "targets" else asked == value
        if key in config.given and not same:
            told = " ".join(asked) if key == "targets" else asked
            has = (" ".join(value) or "a pattern") if key == "targets" else value
            faults.append(
                f"{flag(key)} {told} contradicts --adapter {config.adapter}, which has {has}: leave {flag(key)} out."
            )
    all_faults(faults)
    return replace(config, **decided)


def load_adapter(base: PreTrainedModel, name: str, *, trainable: bool = False) -> PeftModel:
    """The model with the adapter beside its linears.

    Raises:
        InputError: the adapter is damaged, or another model's.
    """
    adapter = read_adapter(name)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are missing: they are named below
            if expert_lists(base):
                return _beside_experts(adapter, base, trainable)
            lora = lora_config_of(adapter)
            if isinstance(lora.init_lora_weights, str) and not start_that_moves_base(lora):
                lora.init_lora_weights = True  # the file has the factors, and a quantised base refuses some starts
            folder = str(Path(name).expanduser())
            model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, config=lora)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"--adapter {name}: not a LoRA adapter that fits this model ({_short(error)}).") from None
    check_fits(adapter, model)
    carry_(name, adapter.extras, model)
    return model


def _beside_experts(adapter: GivenAdapter, base: PreTrainedModel, trainable: bool) -> PeftModel:
    """The same where the model's experts are apart, whichever way the adapter names them."""
    found, lora = for_experts_apart(load_file(Path(adapter.name).expanduser() / WEIGHTS), lora_config_of(adapter), base)
    lora.inference_mode = not trainable
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    check_fits(replace(adapter, shapes={name: tuple(tensor.shape) for name, tensor in found.items()}), model)
    set_peft_model_state_dict(model, found)
    carry_(adapter.name, adapter.extras, model)
    return model


def fitted(adapter: GivenAdapter, lora: LoraConfig, model: PreTrainedModel) -> tuple[GivenAdapter, LoraConfig]:
    """An adapter as it comes to be on a model: where its experts are apart, with their names."""
    if not expert_lists(model):
        return adapter, lora
    shapes = {name: torch.empty(shape, device="meta") for name, shape in adapter.shapes.items()}
    found, lora = for_experts_apart(shapes, lora, model)
    return replace(adapter, shapes={name: tuple(tensor.shape) for name, tensor in found.items()}), lora


def lora_config_of(adapter: GivenAdapter) -> LoraConfig:
    """The adapter's own configuration, for a look at where it goes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown settings: see `tell_unknown`
            config = LoraConfig.from_pretrained(str(Path(adapter.name).expanduser()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"--adapter {adapter.name}: {CONFIG} cannot be read ({_short(error)}).") from None
    assert isinstance(config, LoraConfig)
    return config


def tell_unknown(adapter: GivenAdapter) -> None:
    """Warn of settings that a newer PEFT wrote: this one computes without them."""
    if adapter.unknown:
        log.warning(
            "--adapter %s: this version of PEFT does not know %s, which %s says, and computes without: update PEFT if "
            "the adapter needs it",
            safe(adapter.name), safe(", ".join(adapter.unknown)), CONFIG,
        )  # fmt: skip


def start_that_moves_base(config: LoraConfig) -> str | None:
    """The initialisation, where it takes a part of the base weights into the adapter (PiSSA, OLoRA, ...)."""
    start = config.init_lora_weights
    moving = ("pissa", "olora", "corda", "loftq", "lora_ga")
    return start if isinstance(start, str) and start.startswith(moving) else None


def check_fits(adapter: GivenAdapter, model: PeftModel) -> None:
    """Whether an adapter's file has the tensors that its configuration makes for a model, and no others.

    Raises:
        InputError: names the first that is missing, of another size, or of no module.
    """
    expected = {
        name.replace(".default", ""): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    words = f"--adapter {adapter.name}"
    if any(STACKED.fullmatch(name) for name in expected):
        adapter = replace(adapter, shapes=stacked_shapes(adapter.shapes))
    missing = [name for name in expected if name not in adapter.shapes]
    if missing:
        raise InputError(
            f"{words}: {WEIGHTS} lacks {len(missing)} of the {len(expected)} tensors that its configuration makes for "
            f"this model, such as {missing[0]}: it is damaged (copy it again) or another model's."
        )
    held = model.state_dict()
    expected |= {name: tuple(held[place].shape) for name, place in extra_places(adapter.extras, held).items()}
    beside = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    for name, shape in adapter.shapes.items():
        if expected.get(name) != shape and not name.startswith(beside):
            there = f"has {expected[name]} there" if name in expected else "has no such module"
            raise InputError(
                f"{words}: {name} is {shape} and this model {there}: not a LoRA adapter that fits this model."
            )


def _leaves(targets: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({target.rsplit(".", 1)[-1] for target in targets}))


def _shapes(folder: Path, words: str) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{words}: no {WEIGHTS} there: copy the whole folder. Weights in a pickle (adapter_model.bin) are not "
            "read: save the adapter again with model.save_pretrained(folder)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{words}: {WEIGHTS} is corrupt or truncated ({_short(error)}): copy it again.") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
