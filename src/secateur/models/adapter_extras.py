"""What an adapter carries beside its factors: tensors of the base model's own, and what only PEFT can merge."""

from collections.abc import Container, Iterable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open

from ..system.errors import InputError

WEIGHTS = "adapter_model.safetensors"
UNMERGED = {
    "modules_to_save": "modules that were trained in full",
    "trainable_token_indices": "tokens that were trained in full",
    "lora_bias": "biases of its factors",
    "layer_replication": "layers of the model twice",
    "use_dora": "magnitudes",
    "alora_invocation_tokens": "tokens that switch it on",
    "use_qalora": "factors of pooled inputs",
    "velora_config": "compressed activations",
    "kasa_config": "singular values of its own",
    "use_bdlora": "factors of diagonal blocks",
    "arrow_config": "a router over several adapters",
}
"""Settings of a `LoraConfig` -> what an adapter with it has beside plain factors."""
MERGE_FIRST = (
    "merge it first (PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)), and give "
    "that folder as --model, without --adapter."
)


def check_carried(name: str, lora: LoraConfig) -> None:
    """Refuse an adapter that carries what does not merge into a pruned model.

    Args:
        name: the adapter's folder.
        lora: its configuration.
    Raises:
        InputError: names what it carries, and how to bring it along.
    """
    carried = [key for key in UNMERGED if getattr(lora, key, None)]
    if carried:
        raise InputError(
            f"--adapter {name} carries {' and '.join(f'{UNMERGED[key]} ({key})' for key in carried)} beside "
            f"its factors, which a run that prunes cannot take along: {MERGE_FIRST}"
        )


def extra_places(extras: Iterable[str], held: Container[str]) -> dict[str, str]:
    """Name in an adapter's file -> the name of the base model's tensor that it stands for, of `extras` that have one.

    Biases are named as the base model names them, or as PEFT's layers hold them.

    Args:
        held: names of the adapted model's tensors.
    """
    found: dict[str, str] = {}
    for name in extras:
        path, _, leaf = name.rpartition(".")
        for place in (f"{path}.base_layer.{leaf}", name):
            if place in held:
                found[name] = place
    return found


def carry_(adapter: str, extras: Iterable[str], model: PeftModel) -> None:
    """Put an adapter's extras where they belong: PEFT passes over those whose names it does not know.

    Args:
        adapter: its folder.
    Raises:
        InputError: two of them are to be one.
    """
    held = model.state_dict()
    places = {name: held[place] for name, place in extra_places(extras, held).items()}
    with safe_open(Path(adapter).expanduser() / WEIGHTS, framework="pt") as file, torch.no_grad():
        for name, place in places.items():
            place.copy_(file.get_tensor(name))
        for name, place in places.items():
            if not torch.equal(place.cpu(), file.get_tensor(name).to(place.dtype)):
                raise InputError(
                    f"--adapter {adapter}: {name} is another in its file than what the model ties it to: "
                    "it was trained on a model with two embeddings (tie_word_embeddings: false)."
                )
