"""Two processes as one: each has batches of its own and half of the frozen base (FSDP2).

    torchrun --nproc-per-node 2 examples/two_processes.py              # gloo on CPUs, NCCL on GPUs
    torchrun --nproc-per-node 2 examples/two_processes.py --whole      # each holds all of the base: far less to send

Takes 89 s on 2 cores (AMD EPYC, float32) and 3.1 GB in each process. Leaves runs/two_processes for transformers.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

import secateur
from secateur.checkpoint import export_streamed
from secateur.data import embedded_model_dir, evaluation_tokens, training_blocks
from secateur.parallel import average_gradients_, shard_base

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct, which needs no hub)")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--whole", action="store_true", help="do not shard the base")
args = parser.parse_args()
here = PartialState(cpu=not torch.cuda.is_available())  # meets the other process
torch.manual_seed(0)  # LoRA starts alike in all processes

folder = args.model or embedded_model_dir()
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(here.device)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
shards = 0 if args.whole else shard_base(model)
held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters() if not p.requires_grad)
print(f"process {here.process_index} holds {held:,} frozen parameters ({shards} linears sharded)")

pruner = secateur.Pruner(model, sparsity=0.2, total_steps=args.steps, frequency=2)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
data = training_blocks(["stdlib-docs:train"], tokenizer, seq_len=128)
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data), collate_fn=default_data_collator)
for step, batch in zip(range(1, args.steps + 1), loader, strict=False):
    loss = model(**{name: tensor.to(here.device) for name, tensor in batch.items()}).loss
    loss.backward()
    average_gradients_(p for p in model.parameters() if p.requires_grad)  # then all score, cut and shrink alike
    pruner.observe()
    optimizer.step()
    pruner.step(optimizer)  # checks that all hold the same weights
    optimizer.zero_grad()
    if here.is_main_process:
        print(f"step {step:3}  loss of process 0 {loss.item():.3f}  sparsity {pruner.sparsity:.1%}")

probe, _ = evaluation_tokens("stdlib-docs:held-out", tokenizer, max_tokens=64)  # for the check of what is written
report = export_streamed(model, pruner.live, pruner.live_keep, Path("runs/two_processes"),
                         probe_ids=probe[None], dtype=torch.float32, tokenizer=tokenizer, overwrite=True)  # fmt: skip
if report:
    print(f"{report.folder}: {report.parameters:,} parameters, logits within {report.max_logit_difference:.1e}")
here.destroy_process_group()
