"""The formula of a step's FLOPs against PyTorch's own counter, and against a smaller model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen3Config

from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.pruning.schedule import Schedule
from secateur.training.finetune import checkpoint_layers
from secateur.training.flops import StepFlops, Workload, model_sizes, run_flops, step_flops
from secateur.training.loss import causal_lm_loss

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def counted(model, targets, rank, batch, seq_len, checkpointing=False):
    """FLOPs of forward and backward, by PyTorch's counter; eager attention, as it knows no fused kernel of CPUs."""
    model.set_attn_implementation("eager")
    tuned = get_peft_model(model, LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM")).train()
    if checkpointing:
        checkpoint_layers(tuned)
    ids = torch.zeros(batch, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        causal_lm_loss(tuned(input_ids=ids, use_cache=False), ids).backward()
    return counter.get_total_flops()


def formula(model, work, rank, gone=None, attention="kv_group"):
    units = find_units(model, family_of(model.config.model_type), attention)
    return step_flops(model_sizes(model, units), units, gone or {}, rank, work)


def models():
    yield tiny_llama(layers=3)
    yield AutoModelForCausalLM.from_config(Qwen3Config(**SIZES))
    yield AutoModelForCausalLM.from_config(Gemma2Config(**SIZES))


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["o_proj"], ["down_proj"]])
def test_the_formula_is_what_pytorch_counts(targets) -> None:
    for model in models():
        flops = formula(model, Workload(2, 48, targets), rank=4)
        assert flops.total == pytest.approx(counted(model, targets, 4, 2, 48), rel=2e-3)  # the rotary angles


def test_the_forward_pass_is_counted_again_with_checkpointing() -> None:
    for model in models():
        plain = formula(model, Workload(2, 48, ALL), rank=4)
        flops = formula(model, Workload(2, 48, ALL, checkpointing=True), rank=4)
        assert flops.recomputed > plain.forward > 0 == plain.recomputed
        assert flops.total == pytest.approx(counted(model, ALL, 4, 2, 48, checkpointing=True), rel=2e-3)


def test_units_that_are_gone_cost_nothing() -> None:
    large, small = tiny_llama(heads=8, kv_heads=4, head_dim=8), tiny_llama(heads=4, kv_heads=2, head_dim=8, ffn=40)
    work = Workload(2, 32, ALL)
    gone = {f"layer.{n}.{kind}": count for n in range(3) for kind, count in (("kv_group", 2), ("ffn", 56))}
    assert formula(large, work, 4, gone) == formula(small, work, 4)


def test_a_teacher_and_scores_from_weight_gradients_are_counted() -> None:
    model = tiny_llama()
    plain = formula(model, Workload(2, 32, ALL), 4)
    taught = formula(model, Workload(2, 32, ALL, teacher=True), 4)
    assert taught.teacher == plain.forward + plain.head / 2 + plain.attention / 3
    linear = "model.layers.0.mlp.up_proj"
    assert formula(model, Workload(2, 32, ALL, scored=[linear]), 4).scoring == 2 * 64 * 64 * 96


def test_a_run_shrinks_with_its_schedule() -> None:
    first, last = StepFlops(100, 0, 0, 0, 0, 0, 10), StepFlops(50, 0, 0, 0, 0, 0, 4)
    schedule = Schedule("linear", 2, 6, 2)
    # Steps 1 to 4 are dense, 5 and 6 have lost half of what goes, 7 to 10 all; scores are made up to step 6.
    by_hand = 4 * 110 + 2 * (75 + 7) + 4 * 50
    assert run_flops(first, last, schedule, 10, shrink=True) == by_hand
    assert run_flops(first, last, schedule, 10, shrink=False) == 10 * 100 + 6 * 10
