"""Prune in a PyTorch loop of your own: three calls beside `backward` and `step`, and an export.

    python examples/own_loop.py                                     # SmolLM2-135M on Python's documentation
    python examples/own_loop.py --model ./my-llama --steps 1000     # a folder or hub id

Takes 85 s on 2 cores (AMD EPYC, float32) and 3.2 GB.
Leaves runs/own_loop, which stock transformers load.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

import secateur
from secateur.data import embedded_model_dir, evaluation_tokens, training_blocks
from secateur.evaluation import segment_nlls

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct, which needs no hub)")
parser.add_argument("--steps", type=int, default=24)
args = parser.parse_args()
torch.manual_seed(1)
device = "cuda" if torch.cuda.is_available() else "cpu"

folder = args.model or embedded_model_dir(progress=print)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
data = training_blocks(["stdlib-docs:train"], tokenizer, seq_len=128)
held_out, _ = evaluation_tokens("stdlib-docs:held-out", tokenizer, max_tokens=2048)


def perplexity(model: torch.nn.Module) -> float:
    return segment_nlls(model, held_out, seq_len=128, dtype=torch.float32).mean().exp().item()


print(f"before: perplexity {perplexity(model):.2f}, {model.num_parameters():,} parameters")
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
pruner = secateur.Pruner(model, sparsity=0.2, total_steps=args.steps, frequency=3)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=default_data_collator)

model.train()
for step, batch in zip(range(1, args.steps + 1), loader, strict=False):
    loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
    loss.backward()
    pruner.observe()  # scores every head and channel, from LoRA's gradients
    optimizer.step()
    cut = pruner.step(optimizer)  # cuts when it is time: weights, LoRA and AdamW's moments shrink
    optimizer.zero_grad()
    print(f"step {step:3}  loss {loss.item():.3f}  sparsity {pruner.sparsity:.1%}{'  <- cut' if cut else ''}")

report = pruner.export("runs/own_loop", tokenizer=tokenizer, overwrite=True)
small = AutoModelForCausalLM.from_pretrained("runs/own_loop", dtype=torch.float32).to(device)
print(f"after:  perplexity {perplexity(small):.2f}, {report.parameters:,} parameters")
