"""What a checkpoint with layers that differ has beside its weights: the modelling file, and its sizes for engines.

vLLM's Transformers backend builds the file's model without its head, and asks the configuration, not the model, how
many heads a layer's cache is for: `per_layer_config`, the key that transformers 5 has for what one layer has of its
own. So the same folder loads in both, with every layer of the size that it is.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...architecture.families import Family
from ...architecture.layered import MODULE, code_map, decilm_file, modeling_source
from ...architecture.stock import DECILM, HETEROGENEOUS, LAYERS_KEY, STOCK_TYPE_KEY, head_dim_of, unused_norms

PER_LAYER, READABLE = HETEROGENEOUS


def write_layers(folder: Path, config: PreTrainedConfig, family: Family) -> None:
    """Write the modelling file of layers that differ, and put into config.json what engines ask for."""
    source = modeling_source(config, family)
    (folder / f"{MODULE}.py").write_text(source, encoding="utf-8")
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {"auto_map": code_map(config)} | _scale(config)
    if not family.layers_vary:
        values |= {"head_dim": head_dim_of(config, family)} | heads_of_layers(config, family)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def decilm_state(model: PreTrainedModel, family: Family) -> dict[str, Tensor] | None:
    """A model's tensors without the norms before what is gone, which vLLM's class has not; None: all of them.

    These are made ones, as whoever reads the rest begins them: nothing depends on them.
    """
    without = unused_norms(model.config, family)
    for name in without:
        model.get_parameter(name).data.fill_(1)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in without} if without else None


def write_decilm(folder: Path, config: PreTrainedConfig) -> None:
    """Make what `write_layers` wrote, of layers with equally many query heads, DeciLM's form, for vLLM's own class.

    An FFN has its own width, and attention its own number of KV heads, said as query heads for each of them.
    """
    path, code = folder / "config.json", folder / f"{MODULE}.py"
    code.write_text(decilm_file(config, code.read_text(encoding="utf-8")), encoding="utf-8")
    sizes = getattr(config, LAYERS_KEY)
    heads = max(size["num_attention_heads"] for size in sizes)
    blocks = [
        {
            "attention": _attention(heads, size["num_key_value_heads"]),
            "ffn": {"no_op": not size["intermediate_size"], "intermediate_size": size["intermediate_size"] or None},
        }
        for size in sizes
    ]
    values = json.loads(path.read_text(encoding="utf-8"))
    # What reads a tokenizer has no class for such a type, and could not take the older form of rope_parameters.
    values = {key: value for key, value in values.items() if key not in (*HETEROGENEOUS, "rope_scaling")}
    values |= {
        "model_type": DECILM,
        STOCK_TYPE_KEY: config.model_type,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{MODULE}.DeciLMConfig", **code_map(config)},
        "block_configs": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": max(size["num_key_value_heads"] for size in sizes),
        **_biases(config),
    }
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _attention(heads: int, kv_heads: int) -> dict[str, Any]:
    """A block's attention: none, or query heads for each KV head."""
    return {"no_op": not kv_heads, "n_heads_in_group": heads // kv_heads if kv_heads else None}


def _biases(config: PreTrainedConfig) -> dict[str, bool]:
    """Config keys of which linears have biases: Llama's class follows its keys, Qwen2's has some, Mistral's none."""
    llama = config.model_type == "llama"
    found = {key: llama and bool(getattr(config, key, False)) for key in ("attention_bias", "mlp_bias")}
    return {**found, "qkv_bias": found["attention_bias"] or config.model_type == "qwen2"}


def heads_of_layers(config: PreTrainedConfig, family: Family) -> dict[str, Any]:
    """Config keys that give each layer its heads; none where all layers have those that the config says.

    Stock classes read the numbers for all layers, which transformers allows under
    `allow_global_per_layer_attribute_access` alone. `head_dim` must stand beside them: else the size of a head would be
    the width over a layer's heads.
    """
    named = {"num_attention_heads": family.heads, "num_key_value_heads": family.kv_heads}
    keys = {name: key for name, key in named.items() if key is not None}
    given = [{key: size.get(name, 0) for name, key in keys.items()} for size in getattr(config, LAYERS_KEY)]
    own = {
        str(number): {key: count for key, count in heads.items() if count not in (0, getattr(config, key))}
        for number, heads in enumerate(given)
    }
    differing = {number: sizes for number, sizes in own.items() if sizes}
    return {PER_LAYER: differing, READABLE: True} if differing else {}


def _scale(config: PreTrainedConfig) -> dict[str, float]:
    """Granite divides its logits by a number; vLLM multiplies those of any model by this one."""
    divisor = getattr(config, "logits_scaling", None)
    return {"logit_scale": 1 / divisor} if divisor else {}
