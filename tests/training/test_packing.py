"""`--packing separate`: several documents in a sequence train as each would alone."""

import pytest
import torch
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, BloomConfig, Qwen3Config

from secateur.cli import main
from secateur.data.labels import IGNORED
from secateur.data.tokens import training_blocks
from secateur.system.errors import InputError
from secateur.training.finetune import check_packing
from secateur.training.loss import causal_lm_loss

TEXTS = [f"Text {'very ' * n}long, number {n}." for n in range(7)]


def blocks_of(tmp_path, packing, seq_len):
    paths = []
    for number, text in enumerate(TEXTS):
        paths.append(str(tmp_path / f"{number}.txt"))
        (tmp_path / f"{number}.txt").write_text(text)
    return training_blocks(paths, tiny_tokenizer(), seq_len=seq_len, packing=packing)


def test_positions_and_labels_begin_anew(tmp_path) -> None:
    blocks, joined = (blocks_of(tmp_path, packing, 40) for packing in ("separate", "joined"))
    assert blocks.input_ids == joined.input_ids
    assert joined.position_ids is None
    for ids, labels, positions in zip(blocks.input_ids, blocks.labels, blocks.position_ids, strict=True):
        for at, (token, label, position) in enumerate(zip(ids, labels, positions, strict=True)):
            starts = at > 0 and ids[at - 1] == 0  # the end-of-sequence token
            assert position == (0 if starts or at == 0 else positions[at - 1] + 1)
            assert label == (IGNORED if starts or (at == 0 and token == tiny_tokenizer().encode("T")[0]) else token)
    assert sum(position == 0 for row in blocks.position_ids for position in row) > len(blocks)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_those_of_the_documents_alone(tmp_path, attention) -> None:
    length = sum(map(len, TEXTS)) + len(TEXTS)
    blocks = blocks_of(tmp_path, "separate", length)
    model = tiny_llama(dtype=torch.float64)
    model.set_attn_implementation(attention)
    model.config.use_cache = False  # as in training: with a cache transformers looks at no positions
    inputs, labels = blocks.batch([0])
    count = int((labels[:, 1:] != IGNORED).sum())
    found = []
    for alone in (False, True):
        model.zero_grad()
        if alone:
            ends = [i + 1 for i, token in enumerate(blocks.input_ids[0]) if token == 0]
            parts = [blocks.input_ids[0][start:end] for start, end in zip([0, *ends], ends, strict=False)]
            assert len(parts) == len(TEXTS)
            assert count == length - len(TEXTS)
            loss = sum(
                causal_lm_loss(model(input_ids=ids), ids, count) for ids in map(torch.tensor, ([p] for p in parts))
            )
        else:
            loss = causal_lm_loss(model(**inputs), labels, count)
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)  # rotary angles and softmax are float32 inside
    for packed, alone in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))
    joined = causal_lm_loss(model(input_ids=inputs["input_ids"]), labels, count)
    assert abs(joined.item() - found[0][0]) > 1e-3, "joined documents see each other"


def test_a_model_without_positions_is_refused() -> None:
    check_packing(tiny_llama())
    sizes = {"vocab_size": 64, "hidden_size": 32, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    check_packing(AutoModelForCausalLM.from_config(Qwen3Config(**sizes, num_hidden_layers=2, intermediate_size=48)))
    blind = tiny_llama()
    forward = blind.forward
    blind.forward = lambda position_ids, **inputs: forward(**inputs)  # takes positions, and looks at none
    with pytest.raises(InputError, match="use joined"):
        check_packing(blind)
    bloom = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)).eval()
    with pytest.raises(InputError, match="BloomForCausalLM does not keep apart documents"):
        check_packing(bloom)


@pytest.mark.parametrize("more", [["--criterion", "gate"], ["--schedule", "one-shot", "--prune-start", "3"]])
def test_a_run_takes_it(tmp_path, capsys, more) -> None:
    save_tiny(tmp_path / "model", layers=2)
    for number, text in enumerate(TEXTS * 3):
        (tmp_path / f"{number}.txt").write_text(text)
    command = ["prune", "--model", str(tmp_path / "model"), "--data", *map(str, tmp_path.glob("*.txt"))]
    options = ["--steps", "8", "--frequency", "2", "--batch-size", "2", "--seq-len", "48", "--dtype", "float32"]
    losses = []
    for packing in ("joined", "separate"):
        output = tmp_path / packing
        assert main([*command, *options, *more, "--output", str(output), "--packing", packing]) == 0
        losses.append((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert losses[0] != losses[1]
