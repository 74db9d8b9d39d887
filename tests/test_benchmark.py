"""Timing alternates; FLOPs and sizes are counted, not guessed."""

import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer

from secateur.benchmark import checkpoint_bytes, forward_flops, forward_latency, generate_text, parameter_count


def test_models_take_turns() -> None:
    calls: list[str] = []
    models = {"a": tiny_llama(), "b": tiny_llama(ffn=32)}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    found = forward_latency(models, batch=2, seq_len=8, repeats=3, dtype=torch.float32, warmup=1)
    assert calls == ["a", "b"] * 4
    assert found["a"].repeats == 3
    assert found["a"].median_ms > 0


def test_flops_are_those_of_the_linears() -> None:
    model = tiny_llama(layers=1, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=128)
    linears = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 64 * 128
    assert forward_flops(model, 10) == 2 * 10 * linears


def test_sizes(tmp_path) -> None:
    folder = save_tiny(tmp_path / "m", tied=True)
    tied = tiny_llama(tied=True)
    assert parameter_count(tied) == parameter_count(tiny_llama()) - 128 * 64
    assert 0 < checkpoint_bytes(folder) - 4 * parameter_count(tied) < 10_000  # the header
    assert checkpoint_bytes(tmp_path) == 0


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
