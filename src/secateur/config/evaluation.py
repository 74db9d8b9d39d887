"""The options of eval, sample and report, which look at what a run wrote. Importing this module imports no torch."""

import os
from dataclasses import dataclass

from ..system.registry import did_you_mean
from .options import at_least, choice_faults, flag, option
from .run import BOS, BOS_HELP, DEVICE_HELP, DEVICES, device_faults

SEQ_LENS = (128, 1024, 2048)
"""128: LLM-Pruner, LoRAPrune; 1,024: short contexts; 2,048: GPTQ, SparseGPT, Wanda, FLAP."""
TEXTS = ("wikitext2", "wikitext2-unk", "ptb", "ptb-lines", "ptb-valid")
PRESET_SEQ_LENS = {f"{text}-{seq_len}": seq_len for seq_len in SEQ_LENS for text in TEXTS}
"""Preset -> tokens of its segments."""
TASKS = (
    "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "boolq", "mmlu", "gsm8k", "humaneval",
)  # fmt: skip
"""Those that the package has its own definitions of."""


def same_model(model: str, against: str | None) -> list[str]:
    """A fault where one model is given twice, be it by two names of its folder."""
    if against is None or os.path.realpath(model) != os.path.realpath(against):
        return []
    return [f"--model and --against are both {model}: give two models, or leave --against out."]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Everything that `secateur eval` can be told."""

    model: str = option("the model to evaluate: folder, GGUF file, hub id or embedded name", group="model")
    against: str | None = option("a second model, evaluated on the same tokens", None, group="model")
    data: tuple[str, ...] = option(
        "text to measure perplexity on: file, folder, hub data set, or stdlib-docs:held-out", (), group="data"
    )
    preset: str | None = option(
        "a text as pruning papers prepare it, such as wikitext2-2048 or ptb-valid-128; from $SECATEUR_DATA or the hub",
        None,
        group="data",
        known=tuple(PRESET_SEQ_LENS),
    )
    seq_len: int | None = option("tokens per segment; default: the preset's, else 1024", None, group="data")
    bos: str = option(BOS_HELP, "auto", group="data", choices=BOS)
    max_tokens: int | None = option("use only the first tokens of the text", None, group="data")
    batch_size: int | None = option(
        "segments, or task prompts, per forward pass; default: 2 segments, 16 prompts", None, group="data"
    )
    tasks: tuple[str, ...] = option(
        f"tasks of lm-evaluation-harness, such as {','.join(TASKS)}",
        (),
        group="tasks",
        known=TASKS,
    )
    num_fewshot: int | None = option("examples in each prompt; default: the task's own number", None, group="tasks")
    limit: int | None = option(
        "only the first rows of each task (of each MMLU subject) and of --answers", None, group="tasks"
    )
    task_data: str | None = option(
        "folder with piqa.jsonl, hellaswag.jsonl, ...: run the tasks on these, without a network", None, group="tasks"
    )
    allow_code_execution: bool = option(
        "let humaneval run what the model writes, in a process with limits", False, group="tasks"
    )
    answers: str | None = option(
        "rows with a question and an answer, as for training: accuracy, of the likeliest of their answers where they "
        "are 20 at most, else of what the model writes",
        None,
        group="answers",
        metavar="DATA",
    )
    answer_after: str | None = option(
        "let the model write, and compare what stands behind this, such as ####", None, group="answers"
    )
    max_new_tokens: int = option("longest answer that the model writes", 256, group="answers")
    device: str = option(DEVICE_HELP, "auto", group="model", known=DEVICES)
    dtype: str = option(
        "computation: auto takes bfloat16 where the hardware has it",
        "auto",
        group="model",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    output: str | None = option("write the figures to this JSON file", None, group="output")
    overwrite: bool = option("replace an existing --output file", False, group="output")
    trust_remote_code: bool = option("allow Python code shipped with the model", False, group="model")

    @property
    def task_names(self) -> tuple[str, ...]:
        """`tasks`, split at commas, without repetitions."""
        return tuple(dict.fromkeys(name.strip() for part in self.tasks for name in part.split(",") if name.strip()))

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = (
            choice_faults(self)
            + same_model(self.model, self.against)
            + device_faults(self.device)
            + at_least(self, "seq_len", 2)
            + at_least(self, "max_tokens", 2)
        )
        found += at_least(self, "batch_size", 1) + at_least(self, "num_fewshot", 0) + at_least(self, "limit", 1)
        found += at_least(self, "max_new_tokens", 1)
        if self.data and self.preset:
            found.append(f"--data and --preset {self.preset} each name a text: leave one out.")
        if not (self.data or self.preset or self.tasks or self.answers):
            found.append("nothing to evaluate on: give --data, --preset, --tasks or --answers.")
        given = [name for name in ("num_fewshot", "task_data") if getattr(self, name) is not None]
        given += ["limit"] if self.limit is not None and not self.answers else []
        if given and not self.tasks:
            found.append(f"{', '.join(map(flag, given))} without --tasks has no effect: name tasks.")
        if self.answer_after is not None and not self.answers:
            found.append("--answer-after without --answers has no effect: name rows.")
        if self.answer_after == "":
            found.append("--answer-after is empty: give what stands before the answer, or leave it out.")
        if self.allow_code_execution and "humaneval" not in self.task_names:
            found.append("--allow-code-execution has no effect without the task humaneval: leave it out.")
        if len(self.data) > 1:
            found.append(f"--data names {len(self.data)} texts: evaluate one at a time.")
        if self.preset and self.preset in PRESET_SEQ_LENS and self.seq_len not in (None, PRESET_SEQ_LENS[self.preset]):
            found.append(
                f"--seq-len {self.seq_len} contradicts --preset {self.preset}, whose segments have "
                f"{PRESET_SEQ_LENS[self.preset]} tokens: leave one out."
            )
        if self.preset and self.preset not in PRESET_SEQ_LENS:
            hint = did_you_mean(self.preset, PRESET_SEQ_LENS)
            found.append(f"--preset is {self.preset!r}. {hint}Choose from: {', '.join(PRESET_SEQ_LENS)}.")
        return found


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Everything that `secateur sample` can be told."""

    model: str = option("the model that answers: folder, GGUF file, hub id or embedded name", group="model")
    against: str | None = option("a second model, given the same prompts; shown first", None, group="model")
    prompts: tuple[str, ...] = option("prompts, each in quotes", (), group="prompts")
    prompt_file: str | None = option(
        "more prompts: a .txt file with one a line, or .jsonl rows with `prompt`", None, group="prompts"
    )
    chat: bool = option(
        "put prompts into the tokenizer's chat template if it has one; --no-chat continues them as plain text",
        True,
        group="prompts",
    )
    max_new_tokens: int = option("longest answer", 100, group="sampling")
    temperature: float = option("0: greedy; above: sampling, alike for both models", 0.0, group="sampling")
    top_p: float = option("sample from the likeliest tokens that make up this probability", 1.0, group="sampling")
    seed: int = option("fixes sampling, anew for each prompt", 0, group="sampling")
    device: str = option(DEVICE_HELP, "auto", group="model", known=DEVICES)
    dtype: str = option(
        "computation: auto takes bfloat16 where the hardware has it",
        "auto",
        group="model",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    output: str | None = option("write prompts and answers to this JSON file", None, group="output")
    overwrite: bool = option("replace an existing --output file", False, group="output")
    trust_remote_code: bool = option("allow Python code shipped with the model", False, group="model")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = (
            choice_faults(self)
            + same_model(self.model, self.against)
            + device_faults(self.device)
            + at_least(self, "max_new_tokens", 1)
            + at_least(self, "seed", 0)
        )
        if not self.prompts and not self.prompt_file:
            found.append("no prompt given: use --prompts or --prompt-file.")
        if self.temperature < 0:
            found.append(f"--temperature is {self.temperature}: give 0 for greedy answers, or a number above.")
        if not 0 < self.top_p <= 1:
            found.append(f"--top-p is {self.top_p}: give a number above 0 and up to 1.")
        if self.temperature == 0 and self.top_p != 1:
            found.append(f"--top-p {self.top_p} has no effect on greedy answers: set --temperature too.")
        return found


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Everything that `secateur report` can be told."""

    runs: tuple[str, ...] = option("output folders of runs", group="runs", metavar="OUT", positional=True)
    records: tuple[str, ...] = option(
        "further JSON files that eval or sample wrote about these runs; those in a run's folder are found",
        (),
        group="runs",
    )
    output: str | None = option(
        "the page; default: report.html in the run's folder, or comparison.html here", None, group="output"
    )
    overwrite: bool = option("replace an existing --output file", False, group="output")
    plots: str = option(
        "also write the plots next to the page", "none", group="output", choices=("none", "svg", "png", "both")
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self)
        if not self.runs:
            found.append("no run given: name the output folder of a run, or of several.")
        doubled = sorted({run for run in self.runs if self.runs.count(run) > 1})
        return found + [f"{run} is given more than once." for run in doubled]
