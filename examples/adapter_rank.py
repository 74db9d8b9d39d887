"""Prune a LoRA adapter's rank while it trains, from 32 to 8, in a loop of your own (PrunedLoRA).

    python examples/adapter_rank.py                                     # SmolLM2-135M on Python's documentation
    python examples/adapter_rank.py --model ./my-llama --steps 1000     # a folder or hub id

Takes 107 s on 2 cores (AMD EPYC, float32) and 3.4 GB.
Leaves runs/adapter_rank, a plain PEFT adapter: transformers load it with its base.
The base stays as it is: what shrinks is the adapter, with AdamW's moments.
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
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

folder = args.model or embedded_model_dir(progress=print)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
data = training_blocks(["stdlib-docs:train"], tokenizer, seq_len=128)
held_out, _ = evaluation_tokens("stdlib-docs:held-out", tokenizer, max_tokens=2048)


def perplexity(model: torch.nn.Module) -> float:
    return segment_nlls(model, held_out, seq_len=128, dtype=torch.float32).mean().exp().item()


print(f"before: perplexity {perplexity(model):.2f}")
model = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"))
pruner = secateur.RankPruner(model, rank=8, total_steps=args.steps, frequency=3)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=default_data_collator)

model.train()
for step, batch in zip(range(1, args.steps + 1), loader, strict=False):
    loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
    loss.backward()
    pruner.observe()  # the curvature of the loss in each component, from LoRA's gradients
    optimizer.step()
    pruner.step(optimizer)  # drops the components whose loss is the least, and makes up for it in the others
    optimizer.zero_grad()
    rank = max(pruner.ranks.values())
    print(f"step {step:3}  loss {loss.item():.3f}  rank {rank:2}  {pruner.adapter_parameters:,} parameters")

model.save_pretrained("runs/adapter_rank")
again = AutoModelForCausalLM.from_pretrained("runs/adapter_rank", dtype=torch.float32).to(device)
print(f"after:  perplexity {perplexity(again):.2f}, read back from runs/adapter_rank")
