"""Hints for types that are not known: a layout that fits whole, or none; what is hinted at, works."""

import os
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.architecture.likeness import computes_the_same, family_for
from secateur.config.prune import PruneConfig
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.rows import SIZES, TYPES, tiny, unregister

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WIDE: dict[str, object] = {"head_dim": None, "hidden_size": 96}
ONCE_TRACEBACKS: dict[str, dict[str, object]] = {
    "arcee": {}, "apertus": {}, "glm": {}, "glm4": {}, "granitemoe": {**EXPERTS, **WIDE}, "nemotron": {},
    "starcoder2": WIDE, "nanochat": WIDE, "jais2": WIDE, "bitnet": WIDE, "falcon_h1": {},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 240},
}  # fmt: skip
"""They looked like a Mixtral once, and the run that was hinted at ended in a traceback."""
HINTS = {
    "cohere": "--family llama", "seed_oss": "--family llama", "granite": "--family llama", "glm4": "--family glm",
    "jais2": "--family apertus", "helium": "--family llama --attention none", "gpt2": "--family gpt_bigcode",
    "mpt": None, "openai-gpt": None, "bitnet": None, "starcoder2": None,
}  # fmt: skip
"""What a type is told that no family is registered for: as these, were they not."""


def config_of(model_type, **more):
    options = {k: v for k, v in {**SIZES, **more}.items() if v is not None}
    return AutoConfig.for_model(model_type, **options)


@pytest.mark.parametrize("model_type", ONCE_TRACEBACKS)
def test_what_is_tried_on_another_layout_ends_in_a_plan_or_in_one_line(model_type, monkeypatch) -> None:
    unregister(model_type, monkeypatch)
    config = config_of(model_type, **ONCE_TRACEBACKS[model_type])
    for family in ("llama", "mixtral", "olmo2", "phi3", "gpt2", "opt", "qwen3_moe", "glm"):
        options = PruneConfig(model="m", data=("d",), output="o", family=family, criterion="gate", sparsity=0.3)
        try:
            assert plan_budget(options, config).params < 10**7
        except InputError as error:
            assert len(str(error)) < 1200


ALL = [name for name in TYPES if "/" not in name] if os.environ.get("SECATEUR_FAMILIES") == "all" else []


@pytest.mark.parametrize("model_type", dict.fromkeys([*HINTS, *ALL]))
def test_a_hint_is_one_that_works(model_type, tmp_path, monkeypatch) -> None:
    """As the type is told that nothing is known of; it is followed, and what it comes to is verified."""
    row = tiny(model_type, 2) if model_type in TYPES else None
    model = row or AutoModelForCausalLM.from_config(config_of(model_type, **WIDE))
    unregister(model_type, monkeypatch)
    with pytest.raises(InputError, match="unknown model type") as said:
        family_for(model, model_type)
    hint = (
        str(said.value).partition("pass --family ")[2].partition(" (a result")[0] if "look" in str(said.value) else ""
    )
    if model_type in HINTS:
        assert hint == (HINTS[model_type] or "").removeprefix("--family ")
    if hint:
        family, _, attention = hint.partition(" --attention ")
        pruner = Pruner(
            model, sparsity=0.2, total_steps=2, prune_start=0, prune_end=1, frequency=1, criterion="magnitude",
            family=family, attention=attention or "auto", shrink=False,
        )  # fmt: skip
        for _ in range(2):
            pruner.observe()
            pruner.step()
        assert pruner.export(tmp_path / "out").format in ("stock", "layered")


def test_what_sizes_do_not_show_is_seen_in_small() -> None:
    """Alibi's slopes go by the number of a head, and attention in pairs by the order of all: no tensor tells."""
    for name in ("mpt", "diffllama"):
        family = FAMILIES[name]
        named, config = replace(family, no_heads=None), tiny(name, 2).config
        assert computes_the_same(config, family) is True, name
        assert computes_the_same(config, named) is False, name
        assert computes_the_same(config, named, heads=False) is True, name


def test_a_family_of_ones_own_is_tried_in_small_before_training(monkeypatch) -> None:
    """Also from Python and by `plan`: here one that says that an MPT can lose heads."""
    model, own = tiny("mpt", 2), replace(FAMILIES["mpt"], name="mine", no_heads=None)
    unregister("mpt", monkeypatch)
    FAMILIES.register("mpt", own)
    options = {"sparsity": 0.3, "attention_sparsity": 1 / 3, "allocation": "protected", "criterion": "magnitude"}
    options |= {"protect_first": 0, "protect_last": 0}
    said = "mine.*: a small mpt that is cut so computes something else than one that is masked: use .*attention.*none"
    with pytest.raises(InputError, match=said):
        Pruner(model, **options)
    with pytest.raises(InputError, match=said):
        plan_budget(PruneConfig(model="m", data=("d",), output="o", **options), model.config)
    Pruner(model, attention="none", **{**options, "attention_sparsity": None})


def test_experts_that_are_nowhere() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("mistral"))
    with pytest.raises(InputError, match=r"no layer of the model has the experts \(mlp.experts\) that the mixtral"):
        find_units(model, FAMILIES["mixtral"])
