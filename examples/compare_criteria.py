"""Two criteria, or more, on the same data and the same steps, side by side.

    python examples/compare_criteria.py                                      # lora and gate, SmolLM2-135M
    python examples/compare_criteria.py --criteria lora taylor magnitude --steps 100 --model ./my-llama

Takes 91 s on 2 cores (AMD EPYC, float32) and 2.8 GB.
Leaves runs/compare_criteria/CRITERION, which stock transformers load.
One short run each says little of close ones: `secateur compare` runs grids over rates and seeds.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import secateur
from secateur.data import embedded_model_dir, evaluation_tokens, training_blocks
from secateur.evaluation import segment_nlls

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct, which needs no hub)")
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--criteria", nargs="+", default=["lora", "gate"], help="see `secateur criteria`")
args = parser.parse_args()

folder = args.model or embedded_model_dir(progress=print)
tokenizer = AutoTokenizer.from_pretrained(folder)
data = training_blocks(["stdlib-docs:train"], tokenizer, seq_len=128)
held_out, _ = evaluation_tokens("stdlib-docs:held-out", tokenizer, max_tokens=2048)


def load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def perplexity(model: torch.nn.Module) -> float:
    return segment_nlls(model, held_out, seq_len=128, dtype=torch.float32).mean().exp().item()


def pruned(criterion: str) -> str:
    """Train and prune by one criterion; the seed, and with it LoRA's start and the batches, is the same for all."""
    torch.manual_seed(0)
    model = get_peft_model(load(folder), LoraConfig(r=8, target_modules="all-linear"))
    pruner = secateur.Pruner(model, sparsity=0.2, frequency=2, criterion=criterion)
    options = TrainingArguments(
        "runs/compare_criteria.run", max_steps=args.steps, per_device_train_batch_size=4, learning_rate=1e-3,
        lr_scheduler_type="constant", logging_steps=4, save_strategy="no", report_to="none",
    )  # fmt: skip
    Trainer(model=model, args=options, train_dataset=data, callbacks=[secateur.PruningCallback(pruner)]).train()
    return pruner.export(f"runs/compare_criteria/{criterion}", tokenizer=tokenizer, overwrite=True).folder


rows = [("dense", perplexity(load(folder)))]
rows += [(criterion, perplexity(load(pruned(criterion)))) for criterion in args.criteria]
print("\n" + "\n".join(f"{name:12} perplexity {value:8.2f}" for name, value in rows))
