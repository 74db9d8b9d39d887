"""Timing alternates; FLOPs and sizes are counted, not guessed."""

import time

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from secateur.models import benchmark as benchmark_module
from secateur.models.benchmark import forward_flops, forward_latency, generate_text, parameter_count
from secateur.models.files import checkpoint_bytes
from secateur.system.errors import InputError


def test_models_take_turns() -> None:
    calls: list[str] = []
    models = {"a": tiny_llama(), "b": tiny_llama(ffn=32)}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    found = forward_latency(models, batch=2, seq_len=8, repeats=3, dtype=torch.float32, warmup=1)
    assert calls == ["a", "b"] * 4
    assert found["a"].repeats == 3
    assert found["a"].median_ms > 0


def test_what_others_take_of_one_thread_does_not_count(monkeypatch) -> None:
    """Waiting stands for another program's turn; with several threads only the clock knows what they took together."""
    model = tiny_llama(layers=1)
    model.register_forward_pre_hook(lambda module, args: time.sleep(0.1))
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = forward_latency({"a": model}, batch=1, seq_len=8, repeats=1, dtype=torch.float32, warmup=0)
        assert (found["a"].median_ms > 100) == (threads > 1)


def test_flops_are_those_of_the_linears() -> None:
    model = tiny_llama(layers=1, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=128)
    linears = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 64 * 128
    assert forward_flops(model, 10) == 2 * 10 * linears


def test_sizes(tmp_path) -> None:
    folder = save_tiny(tmp_path / "m", tied=True)
    tied = tiny_llama(tied=True)
    assert parameter_count(tied) == parameter_count(tiny_llama()) - 128 * 64
    assert 0 < checkpoint_bytes(folder) - 4 * parameter_count(tied) < 10_000  # the header


def test_generation_is_greedy_and_leaves_the_prompt_out() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat_template=False)
    text = generate_text(model, tokenizer, "ab", max_new_tokens=3, dtype=torch.float32)
    ids = tokenizer("ab", return_tensors="pt")["input_ids"]
    for _ in range(3):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    assert text == tokenizer.decode(ids[0, 2:], skip_special_tokens=True)
    assert text


def test_latency_figures_and_their_conditions(monkeypatch) -> None:
    seconds = iter([9.0, 9.0, 0.001, 0.010, 0.003, 0.030])  # a and b in turn; the first turn is warm-up
    monkeypatch.setattr(benchmark_module, "_time_forward", lambda *args: next(seconds))
    models = {"a": tiny_llama(layers=1), "b": tiny_llama(layers=1)}
    found = forward_latency(models, batch=2, seq_len=8, repeats=2, dtype=torch.bfloat16, warmup=1)
    assert found["a"].to_dict() == {
        "median_ms": pytest.approx(2.0),
        "spread_ms": pytest.approx(1.0),  # quartiles lie within what was measured
        "repeats": 2,
        "batch": 2,
        "seq_len": 8,
        "dtype": "bfloat16",
    }
    assert found["b"].median_ms == pytest.approx(20.0)
    with pytest.raises(InputError, match="repeats is 0"):
        forward_latency(models, batch=2, seq_len=8, repeats=0, dtype=torch.float32)


def test_models_get_the_same_tokens_each_can_read() -> None:
    seen: list[torch.Tensor] = []
    models = {"a": tiny_llama(layers=1, vocab=128), "b": tiny_llama(layers=1, vocab=20)}
    for model in models.values():
        model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    forward_latency(models, batch=3, seq_len=50, repeats=1, dtype=torch.float32, warmup=0)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (3, 50)
    assert seen[0].max() < 20


def test_flops_count_attention_only_when_told_its_width() -> None:
    model = tiny_llama(layers=2)
    with_attention = forward_flops(model, 10, attention_width=[64, 48])
    assert with_attention - forward_flops(model, 10) == 2 * 2 * 10**2 * (64 + 48)


def test_flops_of_packed_weights_are_those_of_their_shape() -> None:
    class Packed(torch.nn.Linear):  # as bitsandbytes stores 4 bits: two numbers a byte, one column
        def __init__(self) -> None:
            super().__init__(64, 32, bias=False)
            self.weight = torch.nn.Parameter(torch.zeros(64 * 32 // 2, 1, dtype=torch.uint8), requires_grad=False)

    assert forward_flops(Packed(), 10) == 2 * 10 * 64 * 32


def test_a_chat_prompt_is_the_users_message_without_a_second_start_token() -> None:
    model, tokenizer, seen = tiny_llama(), tiny_tokenizer(), []
    # As Llama's tokenizers do: encoding a text puts a special token in front.
    front = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer.backend_tokenizer.post_processor = front
    assert tokenizer("a")["input_ids"][0] == 0
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    modes: list[bool] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    generate_text(model.train(), tokenizer, "ab", max_new_tokens=2, dtype=torch.float32)
    assert tokenizer.decode(seen[0][0]) == "<|start|>user\nab<|end|>\n<|start|>assistant\n"
    assert not any(modes)  # dropout would make a greedy text random
    assert model.training  # restored
