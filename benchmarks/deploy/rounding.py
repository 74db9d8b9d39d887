"""How far apart two right readers of an int8 checkpoint may be: what float32's own rounding does to its predictions.

    python benchmarks/deploy/rounding.py FOLDER --record docs/results/int8-rounding.json

FOLDER is a result of `secateur export --format compressed-tensors --quantise int8`, read by transformers in float32 on
4 x 96 tokens (`stdlib-docs:held-out`). Each linear's input is rounded to 8 bits by its token's largest value. Before
that it is changed by a factor of 1 + c e, e normal, for c from 1e-7 (float32's own rounding) to 1e-3. The other divisor
of the largest value is tried, too: compressed-tensors takes 127.5, vLLM's kernel on a CPU 127. Said is how often the
likeliest token stays, and the KL divergence. A minute on one core.
"""

import argparse
import types
from pathlib import Path
from typing import Any

import torch
from matrix import token_ids
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from secateur.system.records import environment, markdown_table, write_json

CASES = {
    "as compressed-tensors rounds": (127.5, 0.0),
    "steps of max / 127, as in vLLM": (127.0, 0.0),
    **{f"input x (1 + {change:g} e)": (127.5, change) for change in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)},
}
"""What is changed -> divisor of a token's largest value, and the relative change of the input."""


def rounded_by(divisor: float, change: float, generator: torch.Generator) -> Any:
    """The forward of a linear whose input, (..., width), is changed and then rounded to 8 bits."""

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        x = x * (1 + change * torch.randn(x.shape, generator=generator)) if change else x
        step = x.abs().amax(-1, keepdim=True) / divisor
        return linear((x / step).round().clamp(-128, 127) * step, self.weight, self.bias)

    return forward


def log_probabilities(model: Any, ids: list[list[int]]) -> torch.Tensor:
    """(positions, vocabulary)."""
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1) for text in ids])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    ids = token_ids(given.folder)
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype="float32").eval()
    expected, record, rows = log_probabilities(model, ids), {}, []
    linears = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    for name, (divisor, change) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        for module in linears:
            module.forward = types.MethodType(rounded_by(divisor, change, generator), module)
        found = log_probabilities(model, ids)
        same = float((found.argmax(-1) == expected.argmax(-1)).double().mean())
        kl = float((expected.exp() * (expected - found)).sum(-1).mean())
        record[name] = {"top_1": same, "kl": kl, "positions": len(expected)}
        rows.append((name, f"{same:.1%}", f"{kl:.4f}"))
    print(markdown_table(rows, ("changed", "likeliest token stays", "mean KL, nats")))
    if given.record:
        write_json(given.record, {"cases": record, "environment": environment()}, result=True)


if __name__ == "__main__":
    main()
