"""How far least squares makes up for what goes: ridge against tokens seen (docs/results/compensation.md).

    SECATEUR_DATA=/path/to/data python benchmarks/criteria/refit.py --json docs/results/compensation.json

The quieter half of `down`'s channels goes (by WANDA's score), or a third of `o`'s heads. The figure is the squared
error of the layer's output on held-out tokens with the refit over that without: 1 is no use, above 1 it harms. `obs`
chooses the channels by their cost after a refit, with its own damping, and is refitted with a ridge of 1.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.criteria.obs import removal_cost
from secateur.models.loading import load_model
from secateur.models.source import resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.pruning.compensation import refit_coefficients
from secateur.system.records import environment, markdown_table, write_json

LAYERS = (2, 8, 16, 24)
TOKENS = (400, 1000, 2000, 4000, 8000)
RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
DAMPINGS = (0.01, 0.1, 1.0)
HELD_OUT = 4096
LENGTH = 256
HEAD = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = Path(os.environ["SECATEUR_DATA"]) / "c4_calib.jsonl"
    model_source = resolve_model("smollm2-135m-instruct")
    model = load_model(model_source, dtype="float32")
    tokens = first_tokens(data, load_tokenizer(model_source), max(TOKENS) + HELD_OUT)
    watched = {f"layer {n} {name}": linear for n in LAYERS for name, linear in watched_linears(model, n)}
    inputs = inputs_of(model, watched, tokens)
    rows = []
    for name, x in inputs.items():
        weight = watched[name].weight.detach().double()
        rows += list(errors(name, weight, x[:-HELD_OUT].double(), x[-HELD_OUT:].double()))
    names = [key for key in rows[0] if key not in ("input", "tokens")]
    lines = [
        (row["input"], str(row["tokens"]), *(f"{row[key]:.3f}" if key in row else "" for key in names)) for row in rows
    ]
    print(markdown_table(lines, ("input of", "tokens seen", *names)))
    if given.json:
        write_json(given.json, {"data": data.name, "held_out": HELD_OUT, "rows": rows, "environment": environment()})


def first_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> Tensor:
    """(sequences, LENGTH) of the file's rows, joined."""
    ids: list[int] = []
    with path.open(encoding="utf-8") as lines:
        while len(ids) < count + LENGTH:
            ids += [*tokenizer(json.loads(next(lines))["text"])["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids[: -(-count // LENGTH) * LENGTH]).view(-1, LENGTH)


def watched_linears(model: PreTrainedModel, layer: int) -> list[tuple[str, nn.Module]]:
    block = model.model.layers[layer]
    return [("down", block.mlp.down_proj), ("o", block.self_attn.o_proj)]


def inputs_of(model: PreTrainedModel, watched: dict[str, nn.Module], tokens: Tensor) -> dict[str, Tensor]:
    """Name -> (tokens, columns) that came into the linear."""
    seen: dict[str, list[Tensor]] = {name: [] for name in watched}
    for name, linear in watched.items():
        linear.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in tokens.split(8):
            model.model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def errors(name: str, weight: Tensor, seen: Tensor, held_out: Tensor) -> Iterator[dict[str, float | str | int]]:
    """A row for each number of tokens: held-out error with the refit over that without, by ridge, and for `obs`."""
    heads = name.endswith(" o")
    score = seen.square().mean(0) * weight.square().sum(0)
    if heads:
        score = score.view(-1, HEAD).sum(1).repeat_interleave(HEAD)
    gone = len(score) // 3 if heads else len(score) // 2
    order = score.argsort(stable=True)
    go, stay = order[:gone], order[gone:]
    without = output_error(weight, held_out, stay, go, None)
    for count in TOKENS:
        chosen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:count]]
        second = chosen.T @ chosen / count
        row: dict[str, float | str | int] = {"input": name, "tokens": count}
        for ridge in RIDGES:
            row[f"{ridge:g}"] = (
                output_error(weight, held_out, stay, go, refit_coefficients(second, stay, go, ridge)) / without
            )
        for damping in () if heads else DAMPINGS:
            cost = removal_cost(weight, second, torch.arange(len(second)).unsqueeze(1), damping)
            order = cost.argsort(stable=True)
            refit = refit_coefficients(second, order[gone:], order[:gone], 1.0)
            row[f"obs {damping:g}"] = output_error(weight, held_out, order[gone:], order[:gone], refit) / without
        yield row


def output_error(weight: Tensor, x: Tensor, stay: Tensor, go: Tensor, refit: Tensor | None) -> float:
    """Squared error of W·x when `go` goes and `stay` takes over by the refit, (stay, go), or not at all."""
    lost = x[:, go] if refit is None else x[:, go] - x[:, stay] @ refit
    return float((lost @ weight[:, go].T).square().sum())


if __name__ == "__main__":
    main()
