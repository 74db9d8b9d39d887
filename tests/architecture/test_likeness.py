"""Hints for types that are not known: a layout that fits whole, or none; what is hinted at, works."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.architecture.likeness import family_for
from secateur.config.prune import PruneConfig
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.rows import SIZES

WIDE: dict[str, object] = {"head_dim": None, "hidden_size": 96}
NONE: dict[str, dict[str, object]] = {
    "arcee": {}, "apertus": {}, "glm": {}, "glm4": {},
    "nemotron": {}, "starcoder2": WIDE, "nanochat": WIDE, "jais2": WIDE, "bitnet": WIDE,
}  # fmt: skip
LLAMA = ("cohere", "seed_oss", "exaone4")


def config_of(model_type, **more):
    options = {k: v for k, v in {**SIZES, **more}.items() if v is not None}
    return AutoConfig.for_model(model_type, **options)


@pytest.mark.parametrize("model_type", [*NONE, *LLAMA])
def test_a_hint_is_one_that_works(model_type) -> None:
    config = config_of(model_type, **NONE.get(model_type, WIDE))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="unknown model type") as refusal:
        family_for(model, model_type)
    assert ("pass --family llama to try it" in str(refusal.value)) == (model_type in LLAMA)
    assert "looks like" not in str(refusal.value).replace("llama layout", "") or model_type in LLAMA
    for family in FAMILIES:  # whatever is tried all the same, ends in a plan or in one line
        options = PruneConfig(model="m", data=("d",), output="o", family=family, criterion="gate", sparsity=0.3)
        try:
            assert plan_budget(options, config).params < 10**7
        except InputError as error:
            assert len(str(error)) < 1200


def test_experts_that_are_nowhere() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("mistral"))
    with pytest.raises(InputError, match=r"no layer of the model has the experts \(mlp.experts\) that the mixtral"):
        find_units(model, FAMILIES["mixtral"])
