"""Every causal model type of transformers: a family with a row, one inside that has it, or a reason why not."""

import functools
import os
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from secateur.architecture.discovery import check_text_model
from secateur.architecture.families import FAMILIES, REFUSED, family_of
from secateur.architecture.nested import RENAMED, is_of_text, text_alone, whole_types
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.system.errors import InputError
from secateur.training.prepare import plan_budget
from tests.architecture.rows import TYPES

ALL = os.environ.get("SECATEUR_FAMILIES") == "all"
ROWS = {name.split("/")[0] for name in TYPES}
WITHOUT = ("it is an encoder", "it is the decoder of an encoder-decoder", "it is recurrent alone")
"""How reasons begin of types that are no decoders with attention and an FFN."""


def standing(model_type: str) -> str:
    """`green`, `inside` (a text model that is taken out is green), `refused`, or nothing: it is not known here."""
    config_class = CONFIG_MAPPING[model_type]
    if config_class.model_type in FAMILIES:
        return "green" if config_class.model_type in ROWS else ""
    if model_type in REFUSED:
        return "refused"
    return "inside" if model_type in whole() else ""


whole = functools.cache(whole_types)
NO_DEFAULTS: dict[str, dict[str, object]] = {
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "emu3": {"vocabulary_map": {"<image>": 5}},
    "qwen4_exp": {"text_config": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256,
                                  "indexer_budget": 64, "indexer_compress_ratio": 4}},
}  # fmt: skip
"""What the configuration of a type does not say of itself, and its class needs."""


def test_every_type_of_transformers_is_pruned_or_refused() -> None:
    unknown = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not standing(name)]
    assert not unknown, (
        f"transformers {__version__} has causal model types of which nothing is known here: {', '.join(unknown)}. Give "
        "each a family in src/secateur/architecture/families/ and a row in tests/architecture/rows/ (see "
        "docs/add-a-family.md), or its reason in src/secateur/architecture/families/refused.py."
    )


@pytest.mark.parametrize("model_type", whole() if ALL else ["lfm2_vl", "qwen4_exp"])
def test_what_is_inside_has_the_names_and_sizes_that_it_has_alone(model_type) -> None:
    config = CONFIG_MAPPING[model_type](**NO_DEFAULTS.get(model_type, {}))
    pictures = type(config) in AutoModelForImageTextToText._model_mapping
    with torch.device("meta"):
        try:
            outer = (AutoModelForImageTextToText if pictures else AutoModelForCausalLM).from_config(config)
        except ImportError as error:
            pytest.skip(str(error))
        text = AutoModelForCausalLM.from_config(text_alone(config))
    taken = {}
    for name, tensor in outer.state_dict().items():
        if is_of_text(name):
            for pattern, replacement in RENAMED.items():
                name = re.sub(pattern, replacement, name)
            taken[name] = tensor.shape
    assert taken == {name: tensor.shape for name, tensor in text.state_dict().items()}


def test_a_type_that_transformers_has_not_or_that_is_pruned_is_not_refused() -> None:
    assert not set(REFUSED) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(REFUSED) & set(FAMILIES)


def test_nearly_all_decoders_with_attention_and_an_ffn_are_pruned() -> None:
    decoders = [n for n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not REFUSED.get(n, "").startswith(WITHOUT)]
    green = [name for name in decoders if standing(name) in ("green", "inside")]
    print(f"{len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} types, {len(decoders)} such decoders, {len(green)} of them green")
    assert len(green) >= 0.9 * len(decoders)


def test_a_refusal_says_why(tmp_path, capsys) -> None:
    CONFIG_MAPPING["bitnet"]().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox")
    given = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "o")]
    for command in ("prune", "sparsify", "plan"):
        assert main([command, *(given[:2] if command == "plan" else given)]) == 2
        printed = capsys.readouterr().err
        assert "model type 'bitnet' cannot be pruned: norms run over its FFN's channels and over its heads" in printed
        assert "secateur families --all" in printed
    for model_type in ("bert", "bart", "mamba", "mllama", "xlnet"):
        with pytest.raises(InputError, match=f"model type .{model_type}. cannot be pruned: it"):
            plan_budget(PruneConfig(model="m", data=("d",), output="o", sparsity=0.3), CONFIG_MAPPING[model_type]())
    with pytest.raises(InputError, match="model type .mllama. cannot be pruned: it has layers that read pictures"):
        check_text_model(CONFIG_MAPPING["mllama"]())  # which `adapt` asks; it is not taken out of itself
    with pytest.raises(InputError, match="model type .reformer. cannot be pruned: it attends by hashing"):
        family_of("reformer")


def test_the_table_of_all(capsys) -> None:
    assert main(["families", "--all"]) == 0
    printed = capsys.readouterr().out
    refused = [line for line in printed[printed.index("refused  ") :].splitlines()[1:] if line]
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in refused} == REFUSED
    wholes = dict(
        line.split() for line in printed.partition("which is taken out")[2].partition("\n\n")[0].splitlines()[1:]
    )
    assert {"gemma3": "gemma3_text", "qwen2_5_vl": "qwen2", "kimi_k25": "deepseek_v3"}.items() <= wholes.items()
    assert {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if CONFIG_MAPPING[name].model_type not in FAMILIES} == {
        *REFUSED, *(set(wholes) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    }  # fmt: skip
    listed = [line.split()[0] for line in printed.partition("\n\n")[0].splitlines()[1:]]
    assert listed == sorted(listed)
    assert main(["families"]) == 0
    assert "refused" not in capsys.readouterr().out
