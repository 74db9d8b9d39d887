"""T5 on the command line: the same as a loop by hand, resumed, in two processes, with a head of its own."""

import json
import math
import random
from io import StringIO

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import save_tiny, save_tiny_t5, tiny_t5_tokenizer
from transformers import AutoModelForSeq2SeqLM, BartConfig, get_scheduler, set_seed
from zygote import launch

import secateur
from secateur.cli import main
from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.runs.prune import prune
from secateur.system.progress import Progress
from secateur.training.callback import PruningCallback
from secateur.training.checkpoints import find_latest
from secateur.training.prepare import prepare

STEPS, ROWS = 8, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    save_tiny_t5(folder / "model")
    save_tiny_t5(folder / "own-head", own_head=True, gated=False)
    chosen = random.Random(0)
    for name, count in (("pairs", ROWS), ("held-out", 5)):
        words = ["".join(chosen.choices("abcdefgh", k=chosen.randint(3, 12))) for _ in range(count)]
        rows = [json.dumps({"source": f"reverse: {word}", "target": word[::-1]}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


def options(place, output, **more):
    given = {
        "model": str(place / "model"), "data": (str(place / "pairs.jsonl"),), "output": str(output), "sparsity": 0.3,
        "steps": STEPS, "batch_size": 4, "frequency": 2, "prune_start": 1, "prune_end": 6, "dtype": "float32",
        "lr": 5e-3,
    }  # fmt: skip
    return {**given, **more}


def run(place, output, **more):
    job = prepare(build(PruneConfig, options(place, output, **more)))
    result = prune(job, Progress(job.total_steps, stream=StringIO()))
    return result, load_file(output / "model.safetensors")


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def batch_of(path):
    """What `DataCollatorForSeq2Seq` makes of the rows, by hand."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = tiny_t5_tokenizer()
    inputs = tokenizer([row["source"] for row in rows], padding=True, return_tensors="pt")
    labels = tokenizer(text_target=[row["target"] for row in rows], padding=True, return_tensors="pt")["input_ids"]
    return {**inputs, "labels": labels.masked_fill(labels == 0, -100)}


@pytest.mark.parametrize("criterion", ["lora", "taylor"])
def test_a_run_is_a_loop_by_hand(place, tmp_path, criterion) -> None:
    """Every step sees all rows, so that their order is of no matter; the loss is transformers' own."""
    result, tensors = run(
        place, tmp_path / "out", criterion=criterion, batch_size=ROWS, accumulation=2, lr_decay="cosine", lr_warmup=0,
        eval_data=str(place / "held-out.jsonl"),
    )  # fmt: skip
    set_seed(0)
    base = AutoModelForSeq2SeqLM.from_pretrained(place / "model")
    linears = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    config = PruneConfig(model="", data=(), output="")
    lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=linears, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(base, lora).train()
    pruner = secateur.Pruner(
        model, sparsity=0.3, total_steps=STEPS, frequency=2, prune_start=1, prune_end=6, criterion=criterion
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    scheduler = get_scheduler("cosine", optimizer, 0, STEPS)
    batch, losses = batch_of(place / "pairs.jsonl"), []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pruner.observe()
        optimizer.step()
        scheduler.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [line["loss"] for line in metrics(tmp_path / "out")] == pytest.approx(losses, rel=1e-4)
    pruner.export(tmp_path / "by-hand")
    by_hand = load_file(tmp_path / "by-hand" / "model.safetensors")
    assert tensors.keys() == by_hand.keys()
    for name, tensor in by_hand.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0.0, atol=2e-4, msg=name)
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    held_out = batch_of(place / "held-out.jsonl")
    with torch.inference_mode():
        expected = math.exp(float(small(**held_out).loss))
    measured = result["pruned"]["perplexity"]
    assert measured["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert measured["tokens_scored"] == int((held_out["labels"] != -100).sum())
    assert result["sparsity"]["reached"] == pytest.approx(0.3, abs=0.02)


def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch) -> None:
    more = {"save_steps": 2, "dropout": 0.2, "accumulation": 2, "init_rank": 12}
    _, whole = run(place, tmp_path / "whole", **more)
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyError
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    with pytest.raises(KeyError):
        run(place, tmp_path / "out", **more)
    monkeypatch.setattr(PruningCallback, "on_optimizer_step", real)
    assert find_latest(tmp_path / "out.run")[0] is not None
    _, resumed = run(place, tmp_path / "out", resume=True, **more)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_two_processes_are_one(place, tmp_path) -> None:
    one, two = (
        ["-m", "secateur", "prune", "--model", str(place / "model"), "--data", str(place / "pairs.jsonl"),
         "--output", str(tmp_path / name), "--steps", "6", "--batch-size", size, "--frequency", "2",
         "--sparsity", "0.3", "--dtype", "float32", "--eval-data", str(place / "held-out.jsonl")]
        for name, size in (("one", "4"), ("two", "2"))
    )  # fmt: skip
    assert main(one[2:]) == 0
    done = launch(2, *two)
    assert done.returncode == 0, done.stderr
    records = [json.loads((tmp_path / name / "units.json").read_text()) for name in ("one", "two")]
    assert records[0]["pools"] == records[1]["pools"]
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_head_of_its_own_stays_one(place, tmp_path, capsys) -> None:
    """As T5 1.1 and Flan-T5 have it, whose configuration says that all three tables are tied."""
    out = tmp_path / "out"
    _, tensors = run(place, out, model=str(place / "own-head"), distill=0.5, shrink=False)
    dense = load_file(place / "own-head" / "model.safetensors")
    assert torch.equal(tensors["lm_head.weight"], dense["lm_head.weight"])
    assert torch.equal(tensors["shared.weight"], dense["shared.weight"])
    result = json.loads((out / "result.json").read_text())
    assert result["dense"]["parameters"] == sum(tensor.numel() for tensor in dense.values())
    assert "Seq2SeqLM" in result["export"]["loads_with"]
    assert (out / "report.html").is_file()
    small = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert not small.config.scale_decoder_outputs
    # What reads it here reads the same.
    shown = ["--model", str(out), "--dtype", "float32"]
    assert main(["eval", *shown, "--against", str(place / "own-head"), "--data", str(place / "held-out.jsonl")]) == 0
    assert "tokens of targets scored, given their sources" in capsys.readouterr().out
    assert main(["sample", *shown, "--prompts", "reverse: abc", "--max-new-tokens", "5"]) == 0
    said = capsys.readouterr().out.split("\n    ")[-1].strip()
    tokenizer = tiny_t5_tokenizer()
    ids = small.generate(**tokenizer("reverse: abc", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert said == (tokenizer.decode(ids[0], skip_special_tokens=True).strip() or "(nothing)")
    assert main(["bench", *shown, "--no-memory", "--repeats", "1", "--seq-len", "8", "--decode-tokens", "3"]) == 0
    assert "decoding" in capsys.readouterr().out


def test_a_dry_run_and_a_plan(place, tmp_path, capsys) -> None:
    data = ["--data", str(place / "pairs.jsonl"), "--output", str(tmp_path / "out")]
    assert main(["prune", "--model", str(place / "model"), *data, "--dry-run", "--batch-size", "4"]) == 0
    assert "would hold a stock T5ForConditionalGeneration" in capsys.readouterr().out
    record = tmp_path / "plan.json"
    plan = ["plan", "--model", str(place / "own-head"), "--steps", "10", "--seq-len", "64", "--target-seq-len", "16"]
    assert main([*plan, "--dtype", "float32", "--device-tflops", "1", "--json", str(record)]) == 0
    planned = json.loads(record.read_text())
    dense = load_file(place / "own-head" / "model.safetensors")
    assert planned["before"]["parameters"] == sum(tensor.numel() for tensor in dense.values())
    linears = {name: tensor.numel() for name, tensor in dense.items() if name.endswith((".q.weight", ".k.weight",
               ".v.weight", ".o.weight", ".wi.weight", ".wo.weight"))}  # fmt: skip
    read = sum(size * (16 if name.startswith("decoder") else 64) for name, size in linears.items())
    assert planned["time"]["flops_by_part"]["first_step"]["forward"] == 8 * 2 * read


def test_evaluation_and_training_are_refused_what_makes_no_sense(place, tmp_path, capsys) -> None:
    model, pairs = str(place / "model"), str(place / "pairs.jsonl")
    save_tiny(tmp_path / "llama", layers=1)
    train = ["prune", "--model", model, "--data", pairs, "--output", str(tmp_path / "out")]
    BartConfig(vocab_size=9, d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path / "bart")
    bart = ["plan", "--model", str(tmp_path / "bart")]
    refused = {
        "model type 'bart' cannot be pruned: it": bart,
        "--family opt: bart is an encoder-decoder; layouts of such are known of t5, mt5": [*bart, "--family", "opt"],
        "--packing separate: t5 is an encoder-decoder, and pairs are padded": [*train, "--packing", "separate"],
        "--bos never: t5 is an encoder-decoder": [*train, "--bos", "never"],
        "--load-in 8bit: t5 is an encoder-decoder": [*train, "--load-in", "8bit"],
        "--stream-export: t5 is an encoder-decoder": [*train, "--stream-export"],
        "t5 is an encoder-decoder, and this command works on causal": ["adapt", *train[1:]],
        "--target-seq-len 9: llama is no encoder-decoder": [
            "plan", "--model", str(tmp_path / "llama"), "--target-seq-len", "9",
        ],
        "is plain text, and an encoder-decoder learns a target": ["prune", "--model", model, "--data", "stdlib-docs",
                                                                   *train[5:]],
        "--preset wikitext2-128: ": ["eval", "--model", model, "--preset", "wikitext2-128"],
        "is a causal model and the other an encoder-decoder": [
            "eval", "--model", model, "--against", str(tmp_path / "llama"), "--data", pairs,
        ],
        "gives 12 pairs, fewer than one batch: --batch-size is 64": [*train, "--batch-size", "64"],
    }  # fmt: skip
    for said, arguments in refused.items():
        assert main(arguments) == 2, said
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
