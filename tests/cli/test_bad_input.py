"""Bad input, one table for all commands: exit code 2, one message with the value and the remedy, nothing written."""

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model
from product import some_of
from safetensors.torch import load_file, save_file
from tiny import save_tiny, save_tiny_t5, tiny_llama, tiny_tokenizer
from tiny_gguf import save_gguf
from transformers import AutoConfig, BertConfig, BertForMaskedLM

from secateur.cli import main
from secateur.data.embedded import stdlib_docs
from secateur.evaluation.local_tasks import definitions
from secateur.system.machine.devices import accelerator

TRAIN = ["--steps", "12", "--seq-len", "32", "--batch-size", "4", "--frequency", "2", "--dtype", "float32"]
PRUNE = ["prune", "--model", "{m}", "--data", "{d}", "--output", "{o}", "--sparsity", "0.4", *TRAIN]
ADAPT = ["adapt", "--model", "{m}", "--data", "{d}", "--output", "{o}", "--init-rank", "8", "--rank", "4", *TRAIN]


def prune(**changes: str) -> list[str]:
    """`secateur prune` with some options changed; an underscore stands for a dash."""
    return changed(PRUNE, changes)


def sparsify(**changes: str) -> list[str]:
    return changed(COMMANDS["sparsify"], changes)


def untrained(**changes: str) -> list[str]:
    return prune(steps="0", **changes)


def adapt(**changes: str) -> list[str]:
    return changed(ADAPT, changes)


def changed(base: list[str], changes: dict[str, str]) -> list[str]:
    words = list(base)
    for name, value in changes.items():
        flag = "--" + name.replace("_", "-")
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return words


def evaluate(**changes: str) -> list[str]:
    return changed(["eval", "--model", "{m}", "--data", "{d}", "--seq-len", "32"], changes)


def gguf(**changes: str) -> list[str]:
    return changed(["export", "--model", "{m}", "--format", "gguf", "--output", "{o}.gguf"], changes)


COMMANDS = {
    "prune": PRUNE,
    "adapt": ADAPT,
    "sparsify": [
        "sparsify",
        "--model",
        "{m}",
        "--data",
        "{d}",
        "--output",
        "{o}",
        "--seq-len",
        "32",
        "--batch-size",
        "4",
        "--method",
        "wanda",
    ],
    "compare": ["compare", "--evaluate-on", "{d}", *PRUNE[1:]],
    "plan": ["plan", "--model", "{m}", "--sparsity", "0.4"],
    "eval": ["eval", "--model", "{m}", "--data", "{d}", "--seq-len", "32"],
    "sample": ["sample", "--model", "{m}", "--prompts", "hello", "--max-new-tokens", "4"],
    "bench": ["bench", "--model", "{m}", "--seq-len", "16", "--repeats", "1", "--no-memory", "--batch-sizes", "1"],
    "export": ["export", "--model", "{m}", "--output", "{o}"],
    "report": ["report"],
    "quickstart": ["quickstart", "--output", "{o}"],
}
READS = {
    "plan": ("config", "gguf"), "export": ("config",), "bench": ("config", "gguf", "weights", "loaded"),
    "compare": ("config", "gguf", "weights", "tokenizer"),
    **dict.fromkeys(("prune", "adapt", "eval", "sample"), ("config", "gguf", "weights", "tokenizer", "loaded")),
}  # fmt: skip
"""What of a model a command looks at before it writes anything (export: of a checkpoint whose layers are alike)."""
MODELS: dict[str, tuple[str, str, str]] = {
    "an unknown model path": ("./nowhere/model", "nowhere", "config"),
    "an encoder-decoder": ("{t}/encoder", "whisper is an encoder-decoder", "config"),
    "an encoder": ("{t}/bert", "bert is an encoder", "config"),
    "an unsupported type": ("{t}/unsupported", "transformers does not know its architecture", "config"),
    "no model type": ("{t}/notype", "model_type", "config"),
    "a config that is not JSON": ("{t}/badconfig", "not valid JSON", "config"),
    "an adapter as model": ("{t}/adapter", "", "config"),
    "a text file as model": ("{t}/short.txt", "", "config"),
    "a share above 1": ("{t}/dropout", "attention_dropout is 2.0: it must be at least 0 and below 1", "config"),
    "precisions in a list": ("{t}/dtypes", 'dtype is ["float32"], and must be a name', "config"),
    "a rope of no type": ("{t}/rope", "rope_parameters.rope_type is None", "config"),
    "a quantisation that says nothing": ("{t}/unquantised", "its quantization_config has no quant_method", "config"),
    "a hub name that cannot be one": ("a b c", "a b c", "config"),
    "a name longer than the system takes": ("n" * 5000, "", "config"),
    "codes with their scales beside them": ("{t}/scaled", "only hf_quant_config.json names the quantization", "config"),
    "a quantisation that is not known": ("{t}/modelopt", 'the quant_method "modelopt", which transformers', "config"),
    "plain quantisation without a method": ("{t}/nomethod", "its quantization_config has no quant_method", "config"),
    "scales of a smoothed model": ("{t}/smooth", "pre_quant_scale and 0 other scales of quantised weights", "config"),
    "a pointer of Git LFS": ("{t}/pointer", "model.safetensors is a Git LFS pointer, not the file itself", "weights"),
    "a pointer for a tokenizer": ("{t}/pointed", "tokenizer.json is a Git LFS pointer", "tokenizer"),
    "weights of a wrapper": ("{t}/wrapped", "the file has it as _orig_mod.lm_head.weight", "loaded"),
    "more experts for a token than there are": ("{t}/experts", "num_experts_per_tok is 6: there are 4", "config"),
    "no positions": ("{t}/positions", "max_position_embeddings is 0: it must be at least 1", "config"),
    "a rotary type of another name": (
        "{t}/su",
        "rope_scaling.type is 'su', which transformers does not know. Did you mean 'longrope'?",
        "config",
    ),
    "a GGUF file's token beyond all": ("{t}/pad.gguf", "padding_token_id is 4294967295, and it has 258 tokens", "gguf"),
    "a GGUF file in parts": ("{t}/part.gguf", "llama-gguf-split --merge", "gguf"),
    "a GGUF file that says more": ("{t}/more.gguf", "llama.attention.scale is 0.5, which transformers", "gguf"),
    "a GGUF file with further tensors": ("{t}/norms.gguf", "leaves out 2 tensors of this llama file", "gguf"),
    "a GGUF file of another pipeline": ("{t}/pre.gguf", "tokenizer.ggml.pre is 'porpoise'", "tokenizer"),
    "an index of nothing": ("{t}/null", "`weight_map` must give every tensor its file, and is null", "weights"),
    "an index that leaves its folder": ("{t}/outside", "which is not in its folder", "weights"),
    "files of two checkpoints": ("{t}/twice", "so the files are of two checkpoints", "weights"),
    "a tensor without a place": ("{t}/sinks", "have no place in a LlamaForCausalLM", "loaded"),
    "truncated weights": ("{t}/truncated", "model.safetensors is corrupt", "weights"),
    "a truncated header": ("{t}/header", "model.safetensors is corrupt", "weights"),
    "a missing shard": ("{t}/shards", "is missing", "weights"),
    "pickled weights only": ("{t}/pickled", "pickles only", "weights"),
    "weights in GGUF beside a config": ("{t}/mixed", "give one, such as", "weights"),
    "no weights": ("{t}/noweights", "has no weights", "weights"),
    "weights that are whole numbers": ("{t}/integers", "are whole numbers (I32)", "weights"),
    "weights of another shape": ("{t}/mismatch", "do not have the shape", "loaded"),
    "a config without a field": ("{t}/nofield", "do not have the shape", "loaded"),
    "a missing tensor": ("{t}/missing", "not in the checkpoint", "loaded"),
    "no tokenizer": ("{t}/notokenizer", "no tokenizer", "tokenizer"),
    "a tokenizer larger than the embedding": ("{t}/small", "has embeddings of 32 tokens", "tokenizer"),
    **{
        f"a tokenizer's {what}": ("{t}/tokenizer " + what, words, "tokenizer")
        for what, words in {
            "length in words": 'model_max_length in tokenizer_config.json is "512", and must be a number',
            "settings in a list": "tokenizer_config.json is no JSON object",
            "settings with a mark": "tokenizer_config.json begins with a byte-order mark",
            "tokens cut short": "special_tokens_map.json is not valid JSON",
            "templates without names": "chat_template in tokenizer_config.json is a list whose entries must have",
            "template in another code": "chat_template.jinja cannot be read: byte 0 is not UTF-8",
            "file without anything": "tokenizer.json cannot be read (KeyError",
        }.items()
    },
}
DATA: dict[str, tuple[str, str]] = {
    "an unknown data path": ("{t}/none.jsonl", "none.jsonl"),
    "data that is a pipe": ("{t}/pipe.txt", "no regular file"),
    "data that is a link to itself": ("{t}/loop.txt", "loop.txt"),
    "empty data": ("{t}/empty.txt", "empty"),
    "not UTF-8": ("{t}/latin.txt", "UTF-8"),
    "truncated JSON": ("{t}/cut.jsonl", "cut.jsonl:2 is not valid JSON"),
    "a number of 5,000 digits": ("{t}/digits.jsonl", "digits.jsonl:1"),
    "one bad file in a folder": ("{t}/formats", "bad.jsonl:1"),
    "a data name longer than the system takes": ("n" * 5000, ""),
    "a data name that is not UTF-8": ("caf\udce9.txt", "caf"),
}
FLAGS = {"prune": "data", "adapt": "data", "eval": "data", "compare": "evaluate_on"}
YAMLS = {
    "a pipe": ("pipe.txt", "pipe or a device"),
    "a folder": ("hollow", "is a folder"),
    "a date that is none": ("date.yaml", "not valid YAML"),
    "nested too deeply": ("deep.yaml", "nested too deeply"),
    "a number of 5,000 digits": ("digits.yaml", "digits.yaml"),
    "a boolean with a tag": ("tag.yaml", "not valid YAML"),
}

ABSENT = "xpu" if accelerator() == "mps" else "mps"
DEVICES = {
    "cuba": "--device is 'cuba'. Did you mean 'cuda'? Choose from: auto, cpu, cuda, mps, xpu",
    "GPU": "--device is 'GPU'. 'auto' takes the GPU where there is one. Choose from: auto",
    "Cuda": "Did you mean 'cuda'?",
    "cuda:-1": "--device is 'cuda:-1': give cuda or a number with it, such as cuda:1",
    ABSENT: f"--device {ABSENT}: this PyTorch ({torch.__version__}) is built without it",
}


def table() -> dict[str, tuple[list[str], str]]:
    """Each case for every command that takes such a thing."""
    found = {}
    for command, reads in READS.items():
        for name, (model, words, what) in MODELS.items():
            if what in reads:
                found[f"{command}: {name}"] = (changed(COMMANDS[command], {"model": model}), words)
    for command, flag in FLAGS.items():
        for name, (spec, words) in DATA.items():
            found[f"{command}: {name}"] = (changed(COMMANDS[command], {flag: spec}), words)
    for command in COMMANDS:
        for name, (file, words) in YAMLS.items():
            found[f"{command}: YAML that is {name}"] = ([*COMMANDS[command], "--config", "{t}/" + file], words)
    for command in ("prune", "adapt", "compare", "export", "quickstart"):
        for name, words in (("short.txt", "is a file"), ("short.txt/out", ""), ("loop.txt", "loop of links")):
            given = changed(COMMANDS[command], {"output": "{t}/" + name})
            found[f"{command}: output at {name}"] = (given, words)
    for command in (name for name in COMMANDS if name != "report"):
        form = {"format": "compressed-tensors"} if command == "export" else {}
        for name, words in DEVICES.items():
            found[f"{command}: the device {name}"] = (changed(COMMANDS[command], {"device": name, **form}), words)
    for command, flag in (("eval", "output"), ("sample", "output"), ("bench", "output"), ("plan", "json")):
        for place in ("{t}", "{t}/short.txt/out.json", "{t}/hollow/none/out.json", "/proc/out.json"):
            found[f"{command}: a record at {place}"] = (changed(COMMANDS[command], {flag: place}), f"--{flag} ")
    return found


TEMPLATES = {
    "raises": ("{{ raise_exception('x') }}", "TemplateError: x)"),
    "does not parse": ("{% if %}", "TemplateSyntaxError: "),
    "names what is not there": ("{{ a.b.c }}", "UndefinedError: 'a' is undefined"),
    "reaches out": ("{{ ''.__class__.__mro__ }}", "SecurityError: "),
    "includes a file": ("{% include 'x' %}", "TypeError: "),
    "divides": ("{{ 1 // 0 }}", "ZeroDivisionError: "),
    "has names": ({"tool": "x"}, "ValueError: "),
}
"""Chat templates, and what is said of each."""
TASK_ROWS = {
    "piqa label 7": ({"goal": "a", "sol1": "b", "sol2": "c", "label": 7}, ":1 has no 'query' and no 'choices' and"),
    "piqa gold 7": ({"query": "a", "choices": ["b", "c"], "gold": 7}, "piqa.jsonl:1 has 7 as 'gold': expected 0 to 1"),
    "hellaswag no endings": (
        {"query": "a", "choices": ["b", None, None, None], "gold": 0}, ":1 has null as number 2 of 'choices'",
    ),
    "winogrande no option": ({"context_options": "a", "continuation": "b", "gold": 0}, "\"a\" as 'context_options'"),
    "arc_easy a number": (5, "arc_easy.jsonl:1 is no row of keys: expected query, choices, gold."),
    "openbookqa a text as gold": ({"query": "a", "choices": ["b"], "gold": "B"}, "\"B\" as 'gold': expected 0 to 0"),
}  # fmt: skip
"""A task's name and what its only row lacks -> the row, and what is said of it."""
CASES: dict[str, tuple[list[str], str]] = {
    **table(),
    "a quantisation without its package": (evaluate(model="{t}/gptq"), "pip install 'optimum' 'gptqmodel'. Or give"),
    # file system
    "unknown model path": (prune(model="./nowhere/model"), "./nowhere/model"),
    "unknown data path": (prune(data="{t}/none.jsonl"), "none.jsonl"),
    "data is a pipe": (prune(data="{t}/pipe.txt"), "no regular file"),
    "data is a link to itself": (prune(data="{t}/loop.txt"), "no such file"),
    "data of an unknown kind": (prune(data="{t}/data.xyz"), "is '.xyz'"),
    "data folder without data": (prune(data="{t}/hollow"), "has no .txt"),
    "non-empty output": (prune(output="{t}/full"), "full is not empty"),
    "output is a file": (prune(output="{t}/short.txt"), "short.txt is a file"),
    "output below a file": (prune(output="{t}/short.txt/out"), "cannot be written"),
    "output is a broken link": (prune(output="{t}/loop.txt"), "loop of links"),
    "output in the model": (prune(output="{m}/pruned"), "overlap"),
    "output is the current folder": (prune(output="."), "current folder"),
    "output where nothing can be made": (prune(output="/proc/secateur/out"), "/proc"),
    "output around its options": (
        [*prune(output="{t}/full", config="{t}/full/run.yaml"), "--overwrite"], "would replace --config",
    ),
    "export's output around its options": (
        [*changed(COMMANDS["export"], {"output": "{t}/full", "config": "{t}/full/run.yaml"}), "--overwrite"],
        "would replace --config",
    ),
    "a record in its options' place": (
        [*evaluate(output="{t}/full/run.yaml", config="{t}/full/run.yaml"), "--overwrite"], "would replace --config",
    ),
    "a plan in its options' place": (
        changed(COMMANDS["plan"], {"json": "{t}/full/run.yaml", "config": "{t}/full/run.yaml"}), "would replace",
    ),
    # data
    "empty data": (prune(data="{t}/empty.txt"), "empty"),
    "blank data": (prune(data="{t}/blank.txt"), "empty"),
    "not UTF-8": (prune(data="{t}/latin.txt"), "UTF-8"),
    "NUL bytes": (prune(data="{t}/nul.txt"), "NUL bytes"),
    "UTF-16": (prune(data="{t}/utf16.txt"), "UTF-8"),
    "missing fields": (prune(data="{t}/fields.jsonl"), "fields.jsonl:2"),
    "truncated JSON": (prune(data="{t}/cut.jsonl"), "cut.jsonl:2 is not valid JSON"),
    "truncated list": (prune(data="{t}/cut.json"), "not valid JSON"),
    "a number for a text": (prune(data="{t}/number.jsonl"), "`text` is a number"),
    "a row that is no object": (prune(data="{t}/row.jsonl"), "found a number"),
    "no turns": (prune(data="{t}/noturns.jsonl"), "an empty list"),
    "an unknown role": (prune(data="{t}/role.jsonl"), "unknown role 'asistant'. Did you mean 'assistant'"),
    "half a surrogate": (prune(data="{t}/surrogate.jsonl"), "surrogate"),
    "nested too deeply": (prune(data="{t}/deep.jsonl"), "deep.jsonl"),
    "a huge broken line": (prune(data="{t}/huge.jsonl"), "huge.jsonl:1 is not valid JSON"),
    "rows without text": (prune(data="{t}/notext.jsonl"), "no text"),
    "rows of nulls": (prune(data="{t}/nulls.jsonl"), "no text in them (2 with null in place of a text)"),
    "rows with empty replies": (prune(data="{t}/replies.jsonl"), "no text in them (1 with empty reply)"),
    "damaged gzip": (prune(data="{t}/damaged.jsonl.gz"), "damaged.jsonl.gz cannot be read (Not a gzipped file"),
    "ragged CSV": (prune(data="{t}/ragged.csv"), "ragged.csv:2: more cells than the header has"),
    "damaged Parquet": (prune(data="{t}/damaged.parquet"), "cannot be read as .parquet"),
    "tools that are no JSON": (prune(data="{t}/tools.jsonl"), "`tools` is text that is no valid JSON"),
    "a picture in a turn": (prune(data="{t}/picture.jsonl"), "a part of type 'image'"),
    **{f"prune: a chat template that {name}": (
        prune(model="{t}/template " + name, data="{t}/chat.jsonl"),
        f"error: the tokenizer's chat template cannot be rendered ({words}",
    ) for name, (_, words) in TEMPLATES.items()},
    "too few tokens": (prune(data="{t}/short.txt"), "tokens"),
    "unknown split": (prune(data="stdlib-docs:tran"), "Did you mean 'train'"),
    "misspelt data name": (prune(data="stdlib-doc"), "stdlib-docs"),
    "response only on text": ([*prune(), "--response-only"], "response"),
    "too little evaluation text": (prune(eval_data="{t}/short.txt"), "fewer than one segment"),
    # models
    "unsupported type": (prune(model="{t}/unsupported"), "transformers does not know its architecture"),
    "a misspelt type": (prune(model="{t}/misspelt"), "Did you mean 'llama'? "),
    "a type that is refused": (prune(model="{t}/bitnet"), "model type 'bitnet' cannot be pruned: norms run"),
    "how to add a layout": (prune(model="{t}/bitnet"), "docs/add-a-family.md"),
    "no model type": (prune(model="{t}/notype"), "model_type"),
    "config is not JSON": (prune(model="{t}/badconfig"), "not valid JSON"),
    "truncated weights": (prune(model="{t}/truncated"), "model.safetensors is corrupt"),
    "a missing shard": (prune(model="{t}/shards"), "is missing"),
    "weights of another shape": (prune(model="{t}/mismatch"), "do not have the shape"),
    "a missing tensor": (prune(model="{t}/missing"), "not in the checkpoint"),
    "pickled weights only": (prune(model="{t}/pickled"), "pickles only"),
    "no weights": (prune(model="{t}/noweights"), "has no weights"),
    "an adapter as model": (prune(model="{t}/adapter"), "is a LoRA adapter"),
    "a text file as model": (prune(model="{t}/short.txt"), "not .gguf"),
    "a GGUF file to pad": (["export", "--model", "{t}/part.gguf", "--output", "{o}"], "the folder that prune wrote"),
    # a file for llama.cpp
    "gguf: a GGUF file": (gguf(model="{t}/part.gguf"), "is a GGUF file already"),
    "gguf: an adapter": (gguf(model="{t}/adapter"), "is a LoRA adapter, not a checkpoint: --format adapter writes it"),
    "padded: an adapter": (gguf(model="{t}/adapter", format="padded"), "is a LoRA adapter, not a checkpoint"),
    "gguf: a folder as output": (gguf(output="{o}"), "give it a name that ends with .gguf"),
    "gguf: a file that is there": (gguf(output="{t}/part.gguf"), "part.gguf exists: pass --overwrite"),
    "gguf: an engine that does not start": (gguf(engine="{t}/short.txt"), "short.txt cannot be started"),
    "gguf: an engine that is no Python": (gguf(engine="/bin/false"), "/bin/false is no Python that runs"),
    "gguf: quantised twice": (gguf(outtype="q8_0", quantise="Q4_K_M"), "--outtype q8_0 is quantised already"),
    "gguf: no such quantisation": (gguf(quantise="Q4KM"), "Did you mean 'Q4_K_M'"),
    "gguf: a width that cannot be quantised": (gguf(model="{t}/narrow", quantise="Q4_K_M"), "the model is 48 wide"),
    "gguf: quantise another format": (
        [*COMMANDS["export"], "--quantise", "Q4_K_M"], "--quantise Q4_K_M goes with --format gguf",
    ),
    "pickles whose memory is to be measured": (
        ["bench", "--model", "{t}/pickled", "--seq-len", "16", "--repeats", "1"], "pickles only",
    ),
    "a GGUF that is none": (prune(model="{t}/fake.gguf"), "not a GGUF file"),
    "no tokenizer": (prune(model="{t}/notokenizer"), "no tokenizer"),
    "a tokenizer larger than the embedding": (prune(model="{t}/small"), "has embeddings of 32 tokens"),
    "no such precision": (prune(model="{t}/baddtype"), "baddtype"),
    "a hub name that cannot be one": (prune(model="a b c"), "no valid hub id"),
    "more tokens than positions": (prune(seq_len="1024"), "longer than the model's 512 positions"),
    "a plan for more tokens than positions": (
        [*COMMANDS["plan"], "--seq-len", "1024"], "longer than the model's 512 positions",
    ),
    # options
    "sparsity 0": (prune(sparsity="0"), "--sparsity is 0.0"),
    "sparsity 1.2": (prune(sparsity="1.2"), "--sparsity is 1.2"),
    "sparsity unreachable": (prune(sparsity="0.99"), "at most 0."),
    "units unknown": (prune(units="layer"), "--units is 'layer'"),
    "layers of a width": (prune(units="layers", allocation="global", floor="0.2"), "--floor is about heads"),
    "too little for a layer": (prune(units="layers", sparsity="0.05"), "with --units layers: at least 0."),
    "influence of heads": (prune(criterion="influence"), "scores whole layers: add --units layers"),
    "blocks in no one budget": (prune(units="heads,channels,blocks"), "add --allocation global"),
    "layers and ranks": (prune(units="layers", init_rank="16"), "--init-rank prunes the adapter of what"),
    "rank 0": (prune(rank="0"), "--rank is 0"),
    "negative length": (prune(seq_len="-5"), "--seq-len is -5"),
    "steps below 0": (prune(steps="-1"), "--steps is -1: it must be at least 0"),
    "an adapter without training": (adapt(steps="0"), "--steps is 0: it must be at least 1"),
    **{
        f"no training, and {option}": (untrained(**{option: value}), f"--{option.replace('_', '-')} goes with training")
        for option, value in {
            "save_steps": "5", "dropout": "0.1", "distill": "0.5", "init_rank": "16", "report_to": "tensorboard",
        }.items()
    },
    "no training, and a run to go on with": ([*untrained(), "--resume"], "--resume goes with training"),
    **{
        f"sparsify: the pattern {given!r}": (sparsify(pattern=given), f"--pattern is {given!r}: give how many")
        for given in ("0:4", "5:4", "1.5", "2-4", "124")
    },
    "sparsify: a width that is no multiple": (sparsify(pattern="3:7"), "has 64 inputs, which is no multiple of 7"),
    "sparsify: a share of less than a weight": (
        sparsify(pattern="0.01", method="wanda"), "of the 64 weights in a row of model.layers.0.self_attn.q_proj",
    ),
    "sparsify: less than a weight to learn": (
        sparsify(pattern="0.0001", method="pst", steps="4"), "in a matrix of model.layers.0.self_attn",
    ),
    **{
        f"{name}: a T5": (changed(COMMANDS[name], {"model": "{t}/t5"}), "t5 is an encoder-decoder, and this command")
        for name in ("adapt", "compare", "sparsify")
    },
    "sparsify: a quantised base": (sparsify(model="{t}/gptq"), "is quantised already"),
    "sparsify: a base to quantise": (sparsify(load_in="4bit"), "--load-in 4bit rounds the base, and sparsify rewrites"),
    "sparsify: an adapter": (sparsify(adapter="{t}/adapter"), "merge it first (secateur adapt --merge)"),
    "sparsify: output that is there": (sparsify(output="{t}/full"), "full is not empty"),
    "sparsify: a rank to fall": (sparsify(init_rank="16"), "--init-rank 16: sparsify prunes no ranks"),
    "sparsify: a start that fills zeros": (sparsify(lora_init="pissa"), "--lora-init pissa fills the base's zeros"),
    "sparsify: a method": (sparsify(method="sparse-gpt"), "Did you mean 'sparsegpt'"),
    "sparsify: groups for what is learnt": (
        sparsify(method="pst", steps="4"), "--pattern 2:4: pst chooses from a whole matrix",
    ),
    "sparsify: zeros to learn without training": (sparsify(method="pst", pattern="0.5"), "training: give --steps"),
    "sparsify: another scaling than 1": (
        sparsify(method="pst", pattern="0.5", steps="4", alpha="4"), "--alpha does not go with --method pst",
    ),
    "sparsify: no training and dropout": (sparsify(dropout="0.1"), "--dropout goes with training: give --steps"),
    "sparsify: no training and masked LoRA": ([*sparsify(), "--mask-lora"], "--mask-lora goes with training"),
    "sparsify: zeros kept and filled": (
        [*sparsify(steps="4"), "--mask-lora", "--no-keep-pattern"], "--no-keep-pattern fills them: leave one out",
    ),
    "sparsify: masked LoRA and dropout": (
        [*sparsify(steps="4", dropout="0.1"), "--mask-lora"], "leave --dropout 0.1 out",
    ),
    "sparsify: no training and epochs": (sparsify(epochs="2"), "--epochs: sparsify trains for --steps"),
    "sparsify: no training and no pattern": ([*sparsify(), "--no-keep-pattern"], "is about LoRA's merge: give --steps"),
    "no training on 8 bits with a refit": (untrained(load_in="8bit"), "--compensate is from --recipe training-free"),
    "no training, streamed, with a refit": ([*untrained(), "--stream-export"], "is from --recipe training-free"),
    "no cuts": (untrained(cuts="0"), "--cuts is 0: it must be at least 1"),
    "several cuts at once": (untrained(cuts="3", schedule="one-shot"), "--schedule one-shot makes one cut"),
    "no calibration": (untrained(calibration_tokens="0"), "--calibration-tokens is 0"),
    "cuts counted while training": (prune(cuts="3"), "--frequency says when cuts are made"),
    "training after its own recipe": (prune(recipe="training-free"), "--cuts is from --recipe training-free"),
    "too long": (prune(seq_len="513"), "longer than the model's 512 positions"),
    "not a number": (prune(lr="fast"), "--lr is 'fast': expected a number"),
    "infinite learning rate": (prune(lr="inf"), "--lr"),
    "a rate of masks without masks": (prune(mask_lr="0.1"), "criteria that learn masks: lora has none"),
    "a rate of masks below zero": (prune(criterion="learned", mask_lr="-1"), "--mask-lr is -1.0"),
    "masks for no size": (prune(criterion="learned", allocation="search"), "learns masks towards a size"),
    "masks in float16": (prune(criterion="projected", dtype="float16"), "projected learns masks, whose gradients"),
    "a refit to noise": (prune(criterion="compresso", compensate="lstsq"), "scales at random: use none"),
    "nothing to refit": (prune(criterion="projected", compensate="sequential"), "use --compensate lstsq"),
    "negative learning rate": (prune(lr="-1"), "--lr is -1.0"),
    "dropout 1": (prune(dropout="1"), "--dropout is 1"),
    "unknown choice": (prune(attention="heads"), "--attention is 'heads'"),
    "unknown criterion": (prune(criterion="lorra"), "unknown criterion 'lorra'. Did you mean 'lora'"),
    "unknown target": (prune(targets="zzz_proj"), "--targets zzz_proj"),
    "partial targets": (prune(targets="q_proj"), "LoRA does not cover model.layers.0.self_attn.k_proj"),
    "bounds crossed": (prune(prune_start="0.9", prune_end="0.5"), "--prune-start 0.9"),
    "bounds outside": (prune(prune_end="20"), "--prune-end 20"),
    "unequal micro-batches": (prune(accumulation="3"), "--accumulation 3"),
    "resume and overwrite": ([*prune(), "--resume", "--overwrite"], "leave one out"),
    "protection of uniform layers": (prune(protect_first="2"), "--allocation protected"),
    "a teacher without its weights": (prune(distill="0.5"), "--no-shrink"),
    "which experts, of none": (prune(experts_by="router"), "--experts-by router says which experts --experts takes"),
    "nothing that can be trained": (prune(train_also="heads"), "--train-also heads: choose from"),
    "biases that are not there": (prune(train_also="biases"), "--train-also biases: the model has none"),
    "biases that are rounded": (prune(train_also="biases", load_in="8bit"), "biases: those of --load-in 8bit"),
    "gains elsewhere": (prune(train_also="gains", load_in="8bit", targets="q_proj", criterion="gate"), "has no LoRA"),
    "LoRA+ of nothing": (prune(lora_plus="0"), "--lora-plus is 0.0: it must be above 0"),
    "a rate of nothing": (prune(also_lr="1e-4"), "--also-lr 0.0001 is the rate of --train-also"),
    "weights that are rounded": (prune(train_also="weights", load_in="8bit"), "weights: those of --load-in 8bit"),
    "weights that are read anew": ([*prune(train_also="weights"), "--stream-export"], "reads anew: leave one out"),
    "LoRA that is read anew": ([*prune(restart_lora="cuts"), "--stream-export"], "--restart-lora changes the weights"),
    "LoRA in rounded weights": (prune(restart_lora="cuts", load_in="8bit"), "--load-in 8bit is rounded: leave one out"),
    "LoRA anew, ranks too": (prune(restart_lora="cuts", init_rank="16"), "--init-rank averages what it sees"),
    "LoRA anew, never": (prune(restart_lora="50"), "steps follow the last cut: give fewer"),
    "LoRA anew, whenever": (prune(restart_lora="often"), "--restart-lora often: give cuts, a number of steps"),
    "a rate that is none": (prune(lr_after="fast"), "--lr-after is 'fast': give a rate such as 1e-3"),
    "a rate after one cut": (prune(lr_after="0.5x", schedule="one-shot"), "all of the training follows the cut"),
    "evaluation steps without text": (prune(eval_steps="5"), "needs --eval-data"),
    "missing required": (["prune", "--model", "x"], "--output is required"),
    "unknown flag": (["prune", "--sparsety", "1"], "--sparsety"),
    "YAML of another command": (
        [*prune(), "--config", "{t}/other.yaml"],
        "error: 5 unknown options, such as 'a', 'b', 'c', 'd': is the file that of another command? See secateur prune",
    ),
    "push: no name": (["push", "{t}/run"], "error: NAME is required: where to: OWNER/NAME, or NAME."),
    "unknown command": (["prnue"], "Did you mean 'prune'"),
    "unknown YAML key": ([*prune(), "--config", "{t}/keys.yaml"], "unknown option 'sparcity'. Did you mean 'sparsity'"),
    "a wrong YAML type": ([*prune(), "--config", "{t}/types.yaml"], "--ema is [1, 2]: expected"),
    "YAML that is no mapping": ([*prune(), "--config", "{t}/list.yaml"], "found list"),
    "YAML with a tab": (
        [*prune(), "--config", "{t}/tab.yaml"], "tab.yaml: line 2 has a tab, which YAML does not take: put blanks",
    ),
    "YAML with an option twice": (
        [*prune(), "--config", "{t}/twice.yaml"], "twice.yaml: seq_len is in lines 1 and 3: leave one out",
    ),
    "YAML with a number for a name": ([*prune(), "--config", "{t}/name.yaml"], "found '5' as an option's name"),
    "YAML with recipes": ([*prune(), "--config", "{t}/recipes.yaml"], "--recipe ['best', 'stock']: no such recipe"),
    "a YAML without a name": ([*prune(), "--config", ""], "--config is empty"),
    "YAML of a later version": ([*prune(), "--config", "{t}/later.yaml"], "options_format is 2, this version knows 1"),
    "YAML of no version": (
        [*prune(), "--config", "{t}/unversioned.yaml"], "options_format is '1', this version knows 1: give that",
    ),
    "YAML with a date for a name": (
        [*prune(), "--config", "{t}/day.yaml"], "--eval-data is datetime.date(2024, 1, 2): expected text, in quotes",
    ),
    "YAML with nothing behind a name": ([*prune(), "--config", "{t}/nothing.yaml"], "--lr has no value: expected a"),
    "YAML without data": (
        ["prune", "--model", "{m}", "--output", "{o}", "--config", "{t}/nodata.yaml"], "--data is required: training",
    ),
    "per cent": (prune(sparsity="20%"), "--sparsity is '20%': expected a number, such as 0.2."),
    "a comma for a point": (prune(sparsity="0,2"), "--sparsity is '0,2': expected a number, such as 0.2."),
    "broken YAML": ([*prune(), "--config", "{t}/broken.yaml"], "not valid YAML"),
    "no YAML there": ([*prune(), "--config", "{t}/none.yaml"], "cannot be read"),
    # adapters
    "no adapter there": (prune(adapter="{t}/no-adapter"), "--adapter"),
    "an adapter of another model": (prune(adapter="{t}/adapter"), "--adapter"),
    "a rank above the first": (adapt(rank="9"), "--rank 9 is above --init-rank 8"),
    "a rank above a layer": (adapt(init_rank="33"), "adds nothing there"),
    "an adapter with a start": (prune(adapter="{t}/adapter", lora_init="pissa"), "leave one out"),
    "a learning rate beyond floats": ([*prune(), "--config", "{t}/float.yaml"], "--lr is a int beyond any measure"),
    "steps of 4,000 digits": (prune(steps="9" * 4000), "--steps is '999"),
    # other commands
    "export: a device where nothing is computed": (
        [*COMMANDS["export"], "--device", "cpu"], "--device cpu goes with --format compressed-tensors, which",
    ),
    "export: sizes of layers that are none": (["export", "--model", "{t}/sizes", "--output", "{o}"], "must give every"),
    "sample: a prompt file that is a pipe": (
        ["sample", "--model", "{m}", "--prompt-file", "{t}/pipe.txt"], "is a pipe or a device",
    ),
    "sample: a prompt of 5,000 digits": (
        ["sample", "--model", "{m}", "--prompt-file", "{t}/digits.jsonl"], "digits.jsonl:1 is not valid JSON",
    ),
    "report: a record that is a pipe": (["report", "{t}/run", "--records", "{t}/pipe.txt"], "is a pipe or a device"),
    "report: a record of 5,000 digits": (["report", "{t}/run", "--records", "{t}/digits.jsonl"], "not valid JSON"),
    "report: a run's metrics of 5,000 digits": (["report", "{t}/long"], "metrics.jsonl:1 is not valid JSON"),
    "report: a page where none can be": (["report", "{t}/run", "--output", "/proc/page.html"], "/proc/page.html"),
    "eval: short text": (evaluate(data="{t}/short.txt"), "fewer than one segment"),
    "eval: no model": (evaluate(model="{t}/none/x"), "no such folder"),
    "eval: unknown other model": (evaluate(against="{t}/none/x"), "no such folder"),
    "eval: no length": (evaluate(seq_len="0"), "--seq-len is 0"),
    "export: nothing there": (["export", "--model", "{t}/hollow", "--output", "{o}"], "no checkpoint there"),
    "export: equal layers": (["export", "--model", "{m}", "--output", "{o}"], "stock checkpoint already"),
    "sample: an empty prompt file": (["sample", "--model", "{m}", "--prompt-file", "{t}/empty.txt"], "empty"),
    **{f"sample: a chat template that {name}": (
        ["sample", "--model", "{t}/template " + name, "--prompts", "hi"],
        f"the tokenizer's chat template cannot be rendered ({words}",
    ) for name, (_, words) in TEMPLATES.items()},
    "eval: tasks without a token to begin with": (
        ["eval", "--model", "{t}/unended", "--tasks", "piqa", "--task-data", "{t}/rows"],
        "has neither bos_token nor eos_token",
    ),
    **{f"eval: a task's row with {name}": (
        ["eval", "--model", "./nowhere", "--tasks", name.split()[0], "--task-data", "{t}/rows of " + name], words,
    ) for name, (_, words) in TASK_ROWS.items()},
    "report: no run": (["report", "{t}/hollow"], "has no result.json"),
    "report: a damaged run": (["report", "{t}/damaged"], "not valid JSON"),
    "report: no folder": (["report", "{t}/none"], "not a folder"),
    "report: a comparison": (["report", "{t}/grid"], "is a comparison: give the folders of its runs"),
    "report: one of two is none": (["report", "{t}/run", "{t}/hollow"], "has no result.json"),
    "report: several on a page that is there": (
        ["report", "{t}/run", "{t}/other run", "--output", "{t}/short.txt"], "pass --overwrite",
    ),
    "report: one run twice": (["report", "{t}/run", "{t}/run"], "is given more than once"),
    "compare: no text": (
        ["compare", "--model", "{m}", "--data", "{d}", "--output", "{o}", "--evaluate-on", "{t}/none.txt", *TRAIN],
        "none.txt",
    ),
    "compare: a broken cell": (
        ["compare", "--model", "{m}", "--data", "{d}", "--output", "{o}", "--evaluate-on", "{d}", "--cells", "odd",
         *TRAIN],
        "odd",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A good model, good text, and everything that is wrong in some way."""
    folder = tmp_path_factory.mktemp("bad input")  # with a space
    save_tiny(folder / "model", layers=2, ffn=96)
    text = stdlib_docs("train")[0][1].encode("ascii", "ignore").decode()
    (folder / "text.txt").write_text(text * 3, encoding="utf-8")
    bad_files(folder)
    bad_models(folder)
    bad_tokenizers_and_tasks(folder)
    return folder


def bad_files(folder: Path) -> None:
    contents = {
        "empty.txt": b"", "blank.txt": b" \n\n", "latin.txt": "naïve café".encode("latin-1"), "short.txt": b"too short",
        "nul.txt": b"text\0text" * 900, "utf16.txt": ("text " * 900).encode("utf-16"), "data.xyz": b"text",
        "fields.jsonl": b'{"text": "fine"}\n{"body": "not fine"}\n', "cut.jsonl": b'{"text": "fine"}\n{"text": "not f',
        "cut.json": b'[{"text": "fine"}, {"te', "number.jsonl": b'{"text": 5}', "row.jsonl": b"5",
        "noturns.jsonl": b'{"messages": []}', "nulls.jsonl": b'{"text": null}\n{"messages": null}',
        "replies.jsonl": b'{"prompt": "a", "completion": ""}', "damaged.jsonl.gz": b'{"text": "a"}',
        "ragged.csv": b"text\na,b\n", "damaged.parquet": b"PAR1", "tools.jsonl": b'{"messages": [{"role": "user", '
        b'"content": "a"}], "tools": "add"}', "picture.jsonl": b'{"messages": [{"role": "user", "content": [{"type": '
        b'"image"}]}]}', "chat.jsonl": b'{"question": "a", "answer": "b"}',
        "role.jsonl": b'{"messages": [{"role": "asistant", "content": "x"}]}',
        "surrogate.jsonl": b'{"text": "\\ud800"}', "deep.jsonl": b"[" * 100_000,
        "huge.jsonl": b'{"text": "' + b"a" * 3_000_000, "notext.jsonl": b'{"text": ""}\n{"text": " "}',
        "keys.yaml": b"sparcity: 0.2\n", "types.yaml": b"ema: [1, 2]\n", "list.yaml": b"- 1\n- 2\n",
        "date.yaml": b"lr: 2024-13-45\n", "deep.yaml": b"lr: " + b"[" * 600 + b"]" * 600,
        "digits.yaml": b"lr: " + b"9" * 5000, "digits.jsonl": b'{"text": ' + b"9" * 5000 + b"}",
        "float.yaml": b"lr: 0x" + b"f" * 5000, "tag.yaml": b"resume: !!bool maybe\n",
        "tab.yaml": b"lr: 1e-3\n\tsteps: 5\n", "later.yaml": b"options_format: 2\n",
        "unversioned.yaml": b"options_format: '1'\n", "day.yaml": b"eval_data: 2024-01-02\n",
        "other.yaml": b"a: 1\nb: 2\nc: 3\nd: 4\ne: 5\n", "nothing.yaml": b"lr:\n", "nodata.yaml": b"data: []\n",
        "recipes.yaml": b"recipe: [best, stock]\n",
        "twice.yaml": b"seq-len: 16\nsteps: 5\nseq_len: 32\n", "name.yaml": b"steps: 2\n5: 6\n",
        "broken.yaml": b"a: [1,\nb", "fake.gguf": b"no GGUF at all",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    for name in ("hollow", "full", "damaged", "run", "other run", "long", "formats", "grid"):
        (folder / name).mkdir()
    (folder / "grid" / "comparison.json").write_text("{}")
    for name in ("run", "other run", "long"):
        (folder / name / "result.json").write_text("{}")
    (folder / "long" / "metrics.jsonl").write_text('{"loss": ' + "9" * 5000 + "}")
    (folder / "formats" / "a.txt").write_text("fine")
    (folder / "formats" / "bad.jsonl").write_text("not JSON")
    (folder / "full" / "precious.txt").write_text("keep me")
    (folder / "full" / "run.yaml").write_text("overwrite: true")
    (folder / "damaged" / "result.json").write_text('{"status": "do')


def bad_tokenizers_and_tasks(folder: Path) -> None:
    for name, (template, _) in TEMPLATES.items():
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(save_tiny(folder / f"template {name}", layers=1))
        if isinstance(template, dict):
            (folder / f"template {name}" / "chat_template.jinja").unlink()
    broken_tokenizers(folder)
    settings = save_tiny(folder / "unended", layers=1) / "tokenizer_config.json"
    found = json.loads(settings.read_text())
    settings.write_text(json.dumps({key: value for key, value in found.items() if key != "eos_token"}))
    for name, (row, _) in TASK_ROWS.items():
        place = folder / f"rows of {name}" / definitions()[name.split()[0]]["dataset_kwargs"]["data_files"]["test"]
        place.parent.mkdir()
        place.write_text(json.dumps(row))
    (folder / "rows").mkdir()
    (folder / "rows" / "piqa.jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}))


def broken_tokenizers(folder: Path) -> None:
    def written(name: str, file: str, content: bytes) -> None:
        (save_tiny(folder / f"tokenizer {name}", layers=1) / file).write_bytes(content)

    settings = json.loads((folder / "model" / "tokenizer_config.json").read_text())
    written("length in words", "tokenizer_config.json", json.dumps({**settings, "model_max_length": "512"}).encode())
    written("settings in a list", "tokenizer_config.json", b"[]")
    written("settings with a mark", "tokenizer_config.json", b"\xef\xbb\xbf" + json.dumps(settings).encode())
    written("tokens cut short", "special_tokens_map.json", b"{")
    written(
        "templates without names", "tokenizer_config.json", json.dumps(settings | {"chat_template": ["x"]}).encode()
    )
    written("template in another code", "chat_template.jinja", b"\xff\xfe")
    written("file without anything", "tokenizer.json", b"{}")


def bad_models(folder: Path) -> None:
    def copy(name: str, **options: object) -> Path:
        return save_tiny(folder / name, **{"layers": 2, "ffn": 96, **options})

    def edit(path: Path, **changes: object) -> Path:
        config = json.loads((path / "config.json").read_text())
        config = {key: value for key, value in {**config, **changes}.items() if value is not None}
        (path / "config.json").write_text(json.dumps(config))
        return path

    edit(copy("unsupported"), model_type="secateur_test", architectures=["Nothing"])
    edit(copy("misspelt"), model_type="lama")
    (folder / "bitnet").mkdir()
    (folder / "bitnet" / "config.json").write_text('{"model_type": "bitnet", "vocab_size": 9}')
    edit(copy("dropout"), attention_dropout=2.0)
    edit(copy("positions"), max_position_embeddings=0)
    edit(copy("dtypes"), dtype=["float32"])
    edit(copy("rope"), rope_parameters={"rope_type": None, "rope_theta": 1e4})
    edit(copy("unquantised"), quantization_config={})
    edit(copy("notype"), model_type=None, architectures=None)
    (copy("encoder") / "config.json").write_text('{"model_type": "whisper"}')
    save_tiny_t5(folder / "t5", layers=1)
    (copy("badconfig") / "config.json").write_text('{"model_type": "lla')
    weights = copy("truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shards = copy("shards", max_shard_size="100KB")
    sorted(shards.glob("*.safetensors"))[1].unlink()
    index = copy("null", max_shard_size="100KB") / "model.safetensors.index.json"
    index.write_text('{"metadata": {}, "weight_map": null}')
    index = copy("outside", max_shard_size="100KB") / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-00001', '"../model-00001'))
    first, second, *_ = sorted(copy("twice", max_shard_size="100KB").glob("*.safetensors"))
    save_file({**load_file(second), **load_file(first)}, second, {"format": "pt"})
    scaled, plain = copy("scaled") / "model.safetensors", load_file(folder / "model" / "model.safetensors")
    codes = {name: value.to(torch.float8_e4m3fn) if "_proj" in name else value for name, value in plain.items()}
    save_file({**codes, "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, scaled, {"format": "pt"})
    (folder / "scaled" / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    save_file({**plain, "model.layers.0.mlp.up_proj.pre_quant_scale": torch.ones(64)}, copy("smooth") / scaled.name)
    save_file({f"_orig_mod.{name}": value for name, value in plain.items()}, copy("wrapped") / scaled.name)
    name = "model.layers.0.mlp.up_proj"
    packed = {k: v for k, v in plain.items() if k != f"{name}.weight"}
    packed |= {f"{name}.qweight": torch.zeros(8, 96, dtype=torch.int32), f"{name}.scales": torch.ones(2, 96)}
    save_file(packed, edit(copy("gptq"), quantization_config={"quant_method": "gptq", "bits": 4}) / scaled.name)
    for folder_name, file in (("pointer", scaled.name), ("pointed", "tokenizer.json")):
        (copy(folder_name) / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99\n")
    edit(copy("nomethod"), quantization_config={})
    (copy("experts") / "config.json").write_text(
        '{"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 6, "vocab_size": 128}'
    )
    edit(copy("positions"), max_position_embeddings=0)
    edit(copy("su"), rope_scaling={"type": "su", "factor": 2.0})
    save_gguf(folder / "pad.gguf", keys={"tokenizer.ggml.padding_token_id": 4294967295})
    edit(copy("modelopt"), quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    save_file({**plain, "model.sinks": torch.ones(2)}, copy("sinks") / "model.safetensors", {"format": "pt"})
    save_gguf(folder / "part.gguf", keys={"split.count": 2, "split.no": 0})
    save_gguf(folder / "more.gguf", keys={"llama.attention.scale": 0.5})
    norms = {f"blk.{layer}.attn_q_norm.weight": np.ones(16, dtype=np.float32) for layer in range(2)}
    save_gguf(folder / "norms.gguf", tensors=norms)
    save_gguf(folder / "pre.gguf", keys={"tokenizer.ggml.pre": "porpoise"})
    edit(copy("mismatch"), intermediate_size=64)
    edit(copy("missing"), num_hidden_layers=3)
    (copy("pickled") / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    (copy("noweights") / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy("notokenizer") / name).unlink() if name == "tokenizer.json" else (folder / "notokenizer" / name).unlink()
    edit(copy("nofield"), vocab_size=None)
    edit(copy("sizes"), secateur_layers=[{"heads": "many"}, {}])
    (copy("header") / "model.safetensors").write_bytes((10**6).to_bytes(8, "little") + b'{"a":')
    whole = {"model.embed_tokens.weight": torch.zeros(128, 64, dtype=torch.int32)}
    save_file(whole, copy("integers") / "model.safetensors")
    (copy("mixed") / "model.safetensors").rename(folder / "mixed" / "model-Q4.gguf")
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=128)
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    tiny_tokenizer().save_pretrained(folder / "bert")
    copy("small", vocab=32)
    copy("narrow", hidden=48)
    edit(copy("baddtype"), dtype="float99")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(tiny_llama(layers=2, hidden=32, ffn=48), lora).save_pretrained(folder / "adapter")


def everything(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_size) for p in folder.rglob("*"))


def one_of_each() -> list[str]:
    """Of each fault, and each thing said of it, one command, the commands in turn; what is in no table, whole."""
    faults: dict[tuple[str, str], list[str]] = {}
    for name, (_, said) in CASES.items():
        faults.setdefault((name.split(": ", 1)[-1], said), []).append(name)
    return [names[turn % len(names)] for turn, names in enumerate(faults.values())]


@pytest.mark.parametrize("name", some_of(list(CASES), one_of_each()))
def test_bad_input(name, place, tmp_path, capsys) -> None:
    words, expected = CASES[name]
    argv = [
        w.format(m=place / "model", d=place / "text.txt", o=tmp_path / "out", t=place) if "{" in w else w for w in words
    ]
    before = everything(place)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("secateur: error:") == 1
    assert "Traceback" not in printed.err
    assert len(printed.err) < 2500
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()
    assert everything(place) == before
    assert not Path("out.run").exists()


def test_the_catalogue_is_long_enough() -> None:
    assert len(CASES) >= 60


def test_debug_shows_the_traceback(place, tmp_path, capsys) -> None:
    argv = [w.format(m="/no/such", d=place / "text.txt", o=tmp_path / "out", t=place) for w in prune()]
    assert main([*argv, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@contextmanager
def ordinary() -> Iterator[None]:
    """Without root's right to read and write everything (effective capabilities of this thread, on Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, data) == 0
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


LOCKED = {
    "data": (prune(data="{l}/text.txt"), "{l}"),
    "a data file": (prune(data="{t}/secret.txt"), "secret.txt cannot be read"),
    "evaluation data": (evaluate(data="{l}/text.txt"), "{l}"),
    "output": (prune(output="{l}/out"), "{l}"),
    "export's output": (["export", "--model", "{m}", "--output", "{l}/out"], "{l}"),
    "adapt's output": (adapt(output="{l}/out"), "{l}"),
    "model": (["bench", "--model", "{l}/model"], "{l}"),
    "eval's model": (evaluate(model="{l}/model"), "{l}"),
    "config": ([*prune(), "--config", "{l}/run.yaml"], "{l}"),
    "a config file": ([*prune(), "--config", "{t}/secret.txt"], "secret.txt cannot be read"),
    "prompts": (["sample", "--model", "{m}", "--prompt-file", "{t}/secret.txt"], "secret.txt cannot be read"),
    "record": (evaluate(output="{l}/eval.json"), "{l}"),
    "plan's record": ([*COMMANDS["plan"], "--json", "{l}/plan.json"], "{l}"),
    "run": (["report", "{l}/run"], "{l}"),
    "adapter": (prune(adapter="{l}/adapter"), "{l}"),
}


@pytest.mark.parametrize("name", list(LOCKED))
def test_permissions(name, place, tmp_path, capsys) -> None:
    words, expected = LOCKED[name]
    locked, secret = tmp_path / "locked", tmp_path / "secret.txt"
    locked.mkdir()
    secret.write_text("x")
    for path in (locked, secret):
        path.chmod(0o000)
    names = {"m": place / "model", "d": place / "text.txt", "o": tmp_path / "out", "t": tmp_path, "l": locked}
    with ordinary():
        code = main([word.format(**names) for word in words])
    locked.chmod(0o700)
    said = capsys.readouterr().err
    assert code == 2, said
    assert expected.format(**names) in said
    assert said.count("secateur: error:") == 1
    assert not any(locked.iterdir())
    assert not (tmp_path / "out").exists()


def test_a_gated_model(capsys, monkeypatch) -> None:
    def gated(*args, **kwargs):
        raise GatedRepoError.__new__(GatedRepoError)

    def forbidden(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at ...")

    for info, config in ((gated, AutoConfig.from_pretrained), (lambda *args, **kwargs: None, forbidden)):
        with monkeypatch.context() as patch:
            patch.setattr(HfApi, "model_info", info)
            patch.setattr(AutoConfig, "from_pretrained", config)
            assert main(["plan", "--model", "org/gated", "--sparsity", "0.2"]) == 2
        said = capsys.readouterr().err
        assert "is gated: accept its terms on https://huggingface.co/org/gated" in said
        assert "hf auth login" in said


def test_spaces_and_unicode_in_paths(place, tmp_path) -> None:
    folder = tmp_path / "mein schöner Ordner — 模型"
    save_tiny(folder / "das Modell", layers=2)
    (folder / "ein Text.txt").write_text((place / "text.txt").read_text())
    argv = [
        w.format(m=folder / "das Modell", d=folder / "ein Text.txt", o=folder / "die Ausgabe", t=place) for w in prune()
    ]
    assert main(argv) == 0
    assert (folder / "die Ausgabe" / "report.html").is_file()
