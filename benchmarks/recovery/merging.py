"""What is lost where LoRA is merged into a base that is held in bfloat16, again and again.

    SECATEUR_DATA=/path/to/data python benchmarks/recovery/merging.py --lives 8 --steps 6 --json merging.json

SmolLM2-135M, LoRA of rank 8 on every linear of the decoder, steps of 512 tokens of C4, rate 2e-3 with a warm-up of two
steps in each life. After each life LoRA is merged into a base in float32, with which training goes on, and beside it
into one in bfloat16. `of a life` is the norm of what the merge of this life lost in bfloat16, over the norm of what was
merged; `of all` the same of all lives so far. `rounded once` is what the base in float32 loses when it is written in
bfloat16, as any checkpoint is. Perplexity is on held-out C4. About four minutes on one core with AMX.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.architecture.discovery import find_units
from secateur.architecture.families import FAMILIES
from secateur.config.lora import LoraOptions
from secateur.models.devices import autocast
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.surgery import lora_layers, merged_weight
from secateur.models.tokenizers import load_tokenizer
from secateur.system.records import environment, markdown_table, write_json
from secateur.training.finetune import _with_lora, lora_config
from secateur.training.loss import causal_lm_loss
from secateur.training.prepare import lora_names
from secateur.training.recovery.beside import Beside
from secateur.training.recovery.restart import restart_lora_

LENGTH, BATCH, HELD_OUT = 256, 2, 8192
RATE = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source = resolve_model("smollm2-135m-instruct")
    base = load_model(source, dtype="bfloat16")
    tokens = first_tokens(load_tokenizer(source), given.lives * given.steps * BATCH * LENGTH + HELD_OUT)
    training, held_out = tokens[: -HELD_OUT // LENGTH].split(BATCH), tokens[-HELD_OUT // LENGTH :]
    torch.manual_seed(0)
    options = LoraOptions()
    model = _with_lora(base, options, lora_config(options, lora_names(FAMILIES["llama"]), 2.0)).train()
    beside = Beside(model, find_units(base, FAMILIES["llama"]), (), restarts=True)
    start = {name: parameter.detach().clone() for name, parameter in beside.parameters.items()}
    narrow = {name: value.bfloat16() for name, value in start.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    rows = []
    for life in range(given.lives):
        for step in range(given.steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 3)
            ids = training[life * given.steps + step]
            with autocast("cpu", torch.bfloat16):
                causal_lm_loss(model(input_ids=ids, use_cache=False), ids).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        lost = merge_(model, beside, narrow, start)
        restart_lora_(model, optimizer, seed=life)
        found = {"life": life + 1, "steps": (life + 1) * given.steps, **lost}
        if life in (0, given.lives // 2, given.lives - 1):
            found |= perplexities(model, beside, narrow, held_out)
        rows.append(found)
        print(found, flush=True)
    names = list(rows[0])
    print(markdown_table([tuple(f"{row[n]:.4g}" if n in row else "" for n in names) for row in rows], tuple(names)))
    if given.json:
        write_json(given.json, {"held_out": HELD_OUT, "rows": rows, "environment": environment()})


def merge_(model: nn.Module, beside: Beside, narrow: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, float]:
    """Merge LoRA into the weights in bfloat16; -> what that lost so far, over what was learnt."""
    squares = dict.fromkeys(("of a life", "life", "of all", "all", "rounded once"), 0.0)
    for path, layer in lora_layers(model).items():
        name = f"{path}.base_layer.weight"
        wide, held = merged_weight(layer), beside.parameters[name].detach()
        learnt, before = wide - held, narrow[name].float()
        narrow[name] = (before + learnt).bfloat16()
        for key, value in (
            ("of a life", narrow[name].float() - before - learnt),
            ("life", learnt),
            ("of all", narrow[name].float() - wide),
            ("all", wide - start[name]),
            ("rounded once", wide.bfloat16().float() - wide),
        ):
            squares[key] += float(value.double().square().sum())
    return {
        "of a life": (squares["of a life"] / squares["life"]) ** 0.5,
        "of all": (squares["of all"] / squares["all"]) ** 0.5,
        "rounded once": (squares["rounded once"] / squares["all"]) ** 0.5,
    }


def perplexities(model: nn.Module, beside: Beside, narrow: dict[str, Tensor], held_out: Tensor) -> dict[str, float]:
    """With the base in float32 (which the products round), and with the one that was merged into in bfloat16."""
    wide = {name: parameter.data for name, parameter in beside.parameters.items()}
    ways = {
        "float32": wide,
        "bfloat16": {name: value.float() for name, value in narrow.items()},
    }
    found = {}
    for way, weights in ways.items():
        for name, parameter in beside.parameters.items():
            parameter.data = weights[name]
        with torch.no_grad(), autocast("cpu", torch.bfloat16):
            losses = [float(causal_lm_loss(model(input_ids=ids, use_cache=False), ids)) for ids in held_out.split(4)]
        found[way] = float(torch.tensor(losses).mean().exp())
    for name, parameter in beside.parameters.items():
        parameter.data = wide[name]
    return found


def first_tokens(tokenizer: object, count: int) -> Tensor:
    """(sequences, LENGTH) of C4's rows, joined."""
    ids: list[int] = []
    with (Path(os.environ["SECATEUR_DATA"]) / "c4_calib.jsonl").open(encoding="utf-8") as lines:
        while len(ids) < count + LENGTH:
            ids += [*tokenizer(json.loads(next(lines))["text"])["input_ids"], tokenizer.eos_token_id]  # type: ignore
    return torch.tensor(ids[: count // LENGTH * LENGTH]).view(-1, LENGTH)


if __name__ == "__main__":
    main()
