"""Prune inside TRL's SFTTrainer: the same callback as for transformers' Trainer.

    pip install trl
    python examples/trl_sft.py                                     # SmolLM2-135M on Python's documentation
    python examples/trl_sft.py --model ./my-llama --steps 1000     # a folder or hub id

Takes 102 s on 2 cores (AMD EPYC, float32) and 2.6 GB.
Leaves runs/trl_sft, which stock transformers load.
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import secateur
from secateur.data import embedded_model_dir, read_documents

parser = argparse.ArgumentParser()
parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct, which needs no hub)")
parser.add_argument("--steps", type=int, default=16)
args = parser.parse_args()

folder = args.model or embedded_model_dir(progress=print)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
pruner = secateur.Pruner(model, sparsity=0.2, frequency=2)  # the trainer tells it the number of steps
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir="runs/trl_sft.run",
        max_steps=args.steps,
        max_length=128,
        packing=True,
        packing_strategy="wrapped",  # one text after the other, cut into sequences of 128 tokens
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",  # what is left after a cut needs the rate to recover
        bf16=False,  # TRL's default, bfloat16, takes a GPU
        logging_steps=4,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"text": [d.text for d in read_documents("stdlib-docs:train")]}),
    eval_dataset=Dataset.from_dict({"text": [d.text[:1000] for d in read_documents("stdlib-docs:held-out")]}),
    processing_class=tokenizer,
    callbacks=[secateur.PruningCallback(pruner)],
)

print(f"before: held-out loss {trainer.evaluate()['eval_loss']:.3f}")
trainer.train()
gone = f"{pruner.removed_params:,} of {pruner.units.prunable_params:,} prunable parameters gone"
print(f"after:  held-out loss {trainer.evaluate()['eval_loss']:.3f}, {gone}")
report = pruner.export("runs/trl_sft", tokenizer=tokenizer, overwrite=True)
print(f"{report.folder}: {report.parameters:,} parameters. To load it:\n{report.loads_with}")
