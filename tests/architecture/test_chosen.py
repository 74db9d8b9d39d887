"""How many experts a router chooses, which rule says those that go, and what they cost."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_llama, tiny_tokenizer

from secateur.architecture.depth import check_depth
from secateur.architecture.discovery import find_units
from secateur.architecture.experts import LEAST_TOKENS, check_expert_count, check_experts_by, chosen_of, stack_experts
from secateur.architecture.families import FAMILIES
from secateur.architecture.layout import check_layout
from secateur.architecture.stock import stock_class_of
from secateur.comparison.grid import differences
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.models.benchmark import forward_flops
from secateur.system.errors import InputError
from secateur.training.flops import forward_products, model_sizes
from secateur.training.prepare import prepare
from tests.architecture.rows import tiny


def test_experts_for_a_token_may_be_listed_by_layer() -> None:
    config, family = tiny("hunyuan_v1_moe/listed", 2).config, FAMILIES["hunyuan_v1_moe"]
    assert (config.moe_topk, chosen_of(config)) == ([2, 2], 2)
    check_expert_count(config, family, 3)
    config.moe_topk = [1, 2]
    assert chosen_of(config) == 1.5
    with pytest.raises(InputError, match="chooses 1 to 2 experts for a token, by layer"):
        check_expert_count(config, family, 3)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "hunyuan_v1_moe/listed", "llama"])
def test_the_plan_counts_what_a_run_counts(name) -> None:
    """Against the model that is written: attention once a layer, and of the experts those that are chosen."""
    model = tiny_llama() if name == "llama" else tiny(name, 2)
    units = find_units(model, FAMILIES[name.split("/")[0]])
    sizes, widths = model_sizes(model, units), [s.heads * (s.head_dim + s.value_dim) / 2 for s in units.shapes]
    whole = forward_flops(model, 16, attention_width=widths)
    assert forward_products(sizes, units, {}, 16) == whole - 2 * 16 * sizes.head[0] * sizes.head[1]
    channels = {pool.name: pool.size // 2 for pool in units.of_kind("ffn")}
    heads = {pool.name: 1 for pool in units.of_kind("kv_group")}
    ffn = sum(
        rows * columns * share / 2
        for path, (rows, columns, share) in sizes.in_use.items()
        if any(m.linear == path for pool in units.of_kind("ffn") for m in pool.members)
    )
    without = forward_products(sizes, units, channels, 16)
    assert without == forward_products(sizes, units, {}, 16) - 2 * 16 * round(ffn)
    gone = 4 * 16**2 * sum(widths[pool.layer] / pool.size for pool in units.of_kind("kv_group"))
    lost = sum(
        member.index.shape[1] * sizes.in_use[member.linear][1 - member.dim]
        for pool in units.of_kind("kv_group")
        for member in pool.members
    )
    assert forward_products(sizes, units, channels | heads, 16) == without - round(gone) - 2 * 16 * lost


def test_too_few_tokens_for_means_are_told_before_weights_are_read(tmp_path) -> None:
    apart = tiny("qwen3_moe", 2)
    stock = stock_class_of(apart.config)._from_config(apart.config, dtype=torch.float32)
    stock.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES["qwen3_moe"])))
    stock.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 60)
    options = {"model": str(tmp_path / "model"), "data": (str(tmp_path / "text.txt"),), "experts": 3, "sparsity": 0.3}
    options |= {"steps": 1, "batch_size": 2, "seq_len": 16, "output": str(tmp_path / "out")}
    words = r"the experts will see 16 tokens each .*--steps, of which the first 8 count.* or --experts-by router"
    with pytest.raises(InputError, match=words):
        prepare(build(PruneConfig, options | {"experts_by": "reap"}))
    job = prepare(build(PruneConfig, options))
    assert (job.experts_by, job.config.experts_by) == ("router", "reap")
    assert any("experts go by the sum of their routing weights (--experts-by router)" in note for note in job.notes)
    job = prepare(build(PruneConfig, options | {"steps": 2}))
    assert (job.experts_by, job.notes) == ("reap", ())


def test_weights_that_are_in_what_experts_read_are_not_added_up() -> None:
    config, family = tiny("llama4_text").config, FAMILIES["llama4_text"]
    enough = LEAST_TOKENS * config.num_local_experts
    check_experts_by(config, family, 3, "reap", enough)
    with pytest.raises(InputError, match=rf"see {LEAST_TOKENS - 1} tokens each .*--seq-len\)\.$"):
        check_experts_by(config, family, 3, "reap", enough - 1)
    with pytest.raises(InputError, match="use --experts-by reap"):
        check_experts_by(config, family, 3, "router", enough)


def test_layers_whose_kind_is_by_their_number_stay() -> None:
    model = tiny("ernie4_5_moe", 2)
    check_depth(model, FAMILIES["ernie4_5_moe"])
    model.config.moe_layer_interval = 2
    with pytest.raises(InputError, match="moe_layer_interval = 2 every so many layers"):
        check_depth(model, FAMILIES["ernie4_5_moe"])


def test_a_gate_of_values_needs_files_that_resize_it() -> None:
    check_layout(FAMILIES["axk2"])
    with pytest.raises(InputError, match="value_gate is True.*does not resize"):
        check_layout(replace(FAMILIES["llama"], value_gate=True))


def test_experts_went_by_the_router_before_there_was_a_choice() -> None:
    now = {"experts": 3, "experts_by": "reap", "lr_decay": "cosine"}
    assert differences({"experts": 3}, now) == ["experts_by: router -> reap"]
    assert differences({"experts": None}, now | {"experts": None}) == []
