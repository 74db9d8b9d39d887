"""An adapter for engines that know one rank and one scaling: both are baked into its factors."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...config.prune import ExportConfig
from ...models.adapter import CONFIG, read_adapter
from ...models.adapter_extras import UNMERGED, WEIGHTS
from ...system.errors import InputError, VerificationError
from ...system.output import check_output, replaced_whole
from ...system.progress import human_bytes

A, B = ".lora_A.", ".lora_B."
MOST = 1e-6
"""Largest |ΔW - ΔW'| over the largest |ΔW| of a linear. A product of B and its scaling is rounded once, to float32."""


def to_one_rank(config: ExportConfig) -> str:
    """An adapter's folder in the form for engines that read PEFT's.

    Raises:
        InputError: no adapter, one that is no plain LoRA, or the output cannot be written.
        VerificationError: the written factors give other updates of the weights than the original's.
    """
    folder, output = Path(config.model).expanduser(), Path(config.output)
    adapter = read_adapter(config.model)
    check_plain(folder)
    check_output(output, overwrite=config.overwrite, model_folder=folder)
    with replaced_whole(output, (folder / WEIGHTS).stat().st_size) as made:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in (WEIGHTS, "result.json", "report.html"):
                shutil.copyfile(path, made / path.name)
        shutil.copyfile(folder / WEIGHTS, made / WEIGHTS)
        rank = bake_(made)
        difference = check_same_updates(folder, made)
        size = (made / WEIGHTS).stat().st_size
    ranks = adapter.ranks
    before = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks from {ranks[0]} to {ranks[-1]}"
    return (
        f"{output}: a LoRA adapter of {before}, now of rank {rank} and scaling 1 in every layer, {human_bytes(size)}; "
        f"read back, its updates of the weights are the same within {difference:.2g}. Readers that take "
        "alpha over rank compute the same."
    )


def check_plain(folder: Path) -> None:
    """Refuse an adapter that has more than factors, which engines for servers do not take.

    Raises:
        InputError: names what it carries.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    carried = [f"{UNMERGED[key]} ({key})" for key in UNMERGED if config.get(key)]
    if config.get("bias") not in (None, "none"):
        carried.append(f"biases (bias={config['bias']})")
    names = load_file(folder / WEIGHTS)
    if extras := sorted(name for name in names if A not in name and B not in name):
        carried.append(f"other tensors ({extras[0]})")
    if carried:
        raise InputError(
            f"{folder} carries {' and '.join(carried)} beside LoRA's factors of linears, and engines take no such "
            "adapter: merge it (PeftModel.from_pretrained(base, adapter).merge_and_unload())."
        )


def bake_(folder: Path) -> int:
    """Rewrite an adapter's files so that every layer has one rank and scaling 1; the rank.

    The largest rank is every layer's, with zeros where a layer has fewer components; B is multiplied by its layer's
    scaling. So B'·A' = s·B·A, by any reader that takes alpha over rank.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if A in name)
    baked = {}
    for name, tensor in tensors.items():
        wide = tensor.double()
        wide = wide * scaling_of(config, name.replace(B, A), tensors) if B in name else wide
        shape = (rank, tensor.shape[1]) if A in name else (tensor.shape[0], rank)
        padded = torch.zeros(shape, dtype=torch.float64)
        padded[: tensor.shape[0], : tensor.shape[1]] = wide
        baked[name] = padded.to(torch.promote_types(tensor.dtype, torch.float32))
    config |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    config["init_lora_weights"] = True  # some readers refuse the other starts, which are long gone
    save_file(baked, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return rank


def scaling_of(config: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> float:
    """What PEFT multiplies B·A by in the layer whose A has this name."""
    path = name.removeprefix("base_model.model.").split(A)[0]
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), path), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), path), config["lora_alpha"])
    if rank != tensors[name].shape[0]:
        raise InputError(f"{name} has rank {tensors[name].shape[0]}, and {CONFIG} says {rank}: copy the adapter again.")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def check_same_updates(one: Path, other: Path) -> float:
    """Largest difference of the two adapters' updates s·B·A of any linear, over its largest entry.

    Raises:
        VerificationError: it is more than rounding, or a linear is missing.
    """
    found = [_updates(folder) for folder in (one, other)]
    if set(found[0]) != set(found[1]):
        raise VerificationError(f"{other}: the written adapter has other linears than {one}.")
    worst = 0.0
    for name, update in found[0].items():
        expected, written = update(), found[1][name]()
        scale = float(expected.abs().max()) or 1.0
        worst = max(worst, float((expected - written).abs().max()) / scale)
    if not worst <= MOST:
        raise VerificationError(f"{other}: the written adapter's updates are {worst:.3g} off (allowed: {MOST:g}).")
    return worst


def _updates(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)

    def update(name: str) -> Tensor:
        b = tensors[name.replace(A, B)].double()
        return scaling_of(config, name, tensors) * b @ tensors[name].double()

    return {name: (lambda name=name: update(name)) for name in tensors if A in name}
