"""`secateur quickstart`: the whole path on a model and a text that need no hub."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from ..config.options import build
from ..config.prune import PruneConfig, QuickstartConfig
from ..data.embedded import EMBEDDED_MODEL, embedded_model_dir
from ..models.benchmark import generate_text
from ..models.devices import device_of, dtype_of, widened
from ..models.loading import load_model
from ..models.source import resolve_model
from ..models.tokenizers import load_tokenizer
from ..system.errors import InputError
from ..system.machine.devices import device_called
from ..system.output import check_output
from ..system.progress import Progress, phase
from ..system.records import environment, plain, write_json
from ..system.terminal.tables import tell
from ..training.prepare import prepare
from .outcome import report_on
from .prune import prune
from .summary import loading_lines, run_summary

PROMPT = "What does the `with` statement do in Python?"


def quickstart(config: QuickstartConfig) -> None:
    """Prune SmolLM2-135M-Instruct on the standard library's documentation and show what came out.

    Raises:
        InputError: the output folder is in use, or the model cannot be fetched.
    """
    if config.output == QuickstartConfig.output and not config.overwrite and holds_quickstart(Path(config.output)):
        print(f"replacing the earlier quickstart's result in {config.output}")
        config = replace(config, overwrite=True)
    with phase("checking the run"):
        device_called(config.device)
        check_output(Path(config.output), overwrite=config.overwrite, model_folder=None, needed_bytes=None)
        print(
            "secateur quickstart: LoRAPrune on SmolLM2-135M-Instruct with the text of Python's documentation\n"
            "(topics split into training and held-out parts). About 5 minutes on 2 cores, 12 without bfloat16."
        )
        dense_folder = embedded_model_dir(progress=print)
        job = prepare(quickstart_options(config))
    result = prune(job, Progress(job.total_steps), page=False)
    tell(run_summary(result))
    print(f"\nPrompt: {PROMPT}")
    answers, device, dtype = {}, device_of(job.config), dtype_of(job.config)
    for label, folder in (("dense", dense_folder), ("pruned", job.output)):
        with phase(f"the {label} model answers"):
            source = resolve_model(str(folder))
            model, tokenizer = widened(load_model(source), dtype), load_tokenizer(source)
            nn.Module.to(model, device)
            text = generate_text(model, tokenizer, PROMPT, max_new_tokens=40, dtype=dtype)
        print(f"{label + ':':8} {' '.join(text.split())}")
        answers[label] = text
    record = {"samples": [{"prompt": PROMPT, "answers": answers}], "environment": environment(device)}
    write_json(job.output / "sample.json", record)
    report_on(job.output, Progress(job.total_steps))  # with these answers
    print(loading_lines(result))


def holds_quickstart(folder: Path) -> bool:
    """Whether a folder holds what an earlier quickstart wrote, which no one needs to keep."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))["config"]
        wanted = plain(asdict(quickstart_options(QuickstartConfig(output=found["output"], steps=found["steps"]))))
        return all(found[key] == wanted[key] for key in ("model", "data", "eval_data", "sparsity", "attention"))
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False


def quickstart_options(config: QuickstartConfig) -> PruneConfig:
    """The options of `secateur prune` that quickstart stands for."""
    return build(
        PruneConfig,
        {
            "model": EMBEDDED_MODEL,
            "data": ("stdlib-docs:train",),
            "eval_data": "stdlib-docs:held-out",
            "eval_tokens": 12288,
            "eval_seq_len": 512,
            "output": config.output,
            "overwrite": config.overwrite,
            "device": config.device,
            "sparsity": 0.2,
            "steps": config.steps,
            "frequency": 4,
            "attention": "none",
        },
    )
