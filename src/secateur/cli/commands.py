"""The commands: what each says of itself, its options, and what runs, which is imported only then."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.adapt import AdaptConfig
from ..config.compare import CompareConfig
from ..config.evaluation import EvalConfig, ReportConfig, SampleConfig
from ..config.files.listings import FamiliesConfig
from ..config.files.recipes import RecipesConfig
from ..config.files.schema import SchemaConfig, options_schema
from ..config.formats import PADDED, TEXT
from ..config.hub import PushConfig
from ..config.prune import ExportConfig, ExtractTextConfig, PruneConfig, QuickstartConfig
from ..config.sparsify import SparsifyConfig
from ..config.speed import BenchConfig, PlanConfig
from ..system.progress import STARTING, phase
from ..system.terminal.tables import tell
from .listings import criteria, families, recipes
from .running import told
from .training import adapt, prune, sparsify

if TYPE_CHECKING:
    from ..comparison.grid import Comparison


def _push(config: PushConfig) -> int:
    with phase(STARTING):
        from ..runs.hub.upload import push

    return told(f"uploading {config.folder}", lambda: push(config))


def _quickstart(config: QuickstartConfig) -> int:
    with phase(STARTING):
        from ..runs.quickstart import quickstart

    quickstart(config)
    return 0


def _eval(config: EvalConfig) -> int:
    with phase(STARTING):
        from ..evaluation.assess import evaluate_models

    return told("evaluating", lambda: evaluate_models(config))


def _compare(comparison: "Comparison") -> int:
    with phase(STARTING):
        from ..parallel.distributed import part_ways

        share = part_ways(cell.config.device for cell in comparison.cells)  # before any import that looks for GPUs
    with phase(STARTING) if share.number == 0 else nullcontext():
        from ..comparison.command import compare
        from ..comparison.recorded import stopped
    from ..system.errors import InterruptedRun

    if share.number > 0:
        with open(os.devnull, "w", encoding="utf-8") as silence, redirect_stdout(silence), redirect_stderr(silence):
            compare(comparison, share)
        return 0
    try:
        table = compare(comparison, share)
        print()
        tell(table)
    except (InterruptedRun, KeyboardInterrupt) as error:
        raise stopped(error, comparison.settings.output, comparison.cells) from None
    if not any(cell.config.dry_run for cell in comparison.cells):
        print(f"\ntables, plot and records: {comparison.settings.output}")
    return 0


def _export(config: ExportConfig) -> int:
    with phase(STARTING):
        from ..checkpoint.convert import export_config
        from ..runs.summary import export_summary

    def words() -> str:
        done = export_config(config)
        return done if isinstance(done, str) else export_summary(done.to_dict())

    return told(f"exporting {config.model} as {config.format}", words)


def _extract_text(config: ExtractTextConfig) -> int:
    return _export(ExportConfig(model=config.model, output=config.output, overwrite=config.overwrite, format=TEXT))


def _sample(config: SampleConfig) -> int:
    with phase(STARTING):
        from ..evaluation.sample import sample_models

    return told("writing answers", lambda: sample_models(config))


def _report(config: ReportConfig) -> int:
    with phase(STARTING):
        from ..report import make_report

    return told("drawing the report", lambda: "\n".join(map(str, make_report(config))))


def _bench(config: BenchConfig) -> int:
    with phase(STARTING):
        from ..evaluation.bench import bench
        from ..evaluation.drafting import bench_draft
        from ..speed.command import bench_costs

    run = bench_costs if config.cost_table else bench_draft if config.draft else bench
    return told("measuring", lambda: run(config))


def _plan(config: PlanConfig) -> int:
    with phase(STARTING):
        from ..plan.command import plan

    return told("planning", lambda: plan(config))


def _schema(config: SchemaConfig) -> int:
    print(json.dumps(options_schema(config.of, COMMANDS[config.of].options), indent=2, ensure_ascii=False))
    return 0


@dataclass(frozen=True)
class Command:
    """A subcommand: what it says of itself, its options, what runs."""

    summary: str
    run: Callable[[Any], int]
    options: tuple[type, ...] = ()
    example: str = ""
    memory: tuple[str, str] | None = None
    """What it does when memory runs out (beyond loading a model), and the remedy."""


TRAINING = (
    "running",
    "Raise --accumulation, lower --batch-size or --seq-len, pass --gradient-checkpointing, or hold the base in "
    "--load-in 8bit or 4bit.",
)
COMMANDS = {
    "quickstart": Command(
        "prune a small real model on real text: no data and no hub needed, a few minutes",
        _quickstart,
        (QuickstartConfig,),
        "secateur quickstart",
    ),
    "prune": Command(
        "prune a model while LoRA fine-tunes it",
        prune,
        (PruneConfig,),
        "secateur prune --model ./llama --data notes.jsonl --sparsity 0.2 --output ./small",
        TRAINING,
    ),
    "adapt": Command(
        "train a LoRA adapter from a high rank down to a low one",
        adapt,
        (AdaptConfig,),
        "secateur adapt --model ./llama --data gsm8k.jsonl --init-rank 64 --rank 8 --output ./adapter",
        TRAINING,
    ),
    "sparsify": Command(
        "put zeros into a model's weights, 2:4 or anywhere, and train LoRA over them",
        sparsify,
        (SparsifyConfig,),
        "secateur sparsify --model ./llama --data c4.jsonl --pattern 2:4 --method sparsegpt --output ./sparse",
        TRAINING,
    ),
    "compare": Command(
        "run a grid of prune's options and put the results in one table; comma-separated values make an axis",
        _compare,
        (CompareConfig, PruneConfig),
        "secateur compare --model ./llama --data c4.jsonl --criterion lora,taylor --sparsity 0.2,0.5 "
        "--evaluate-on wiki.txt --output ./grid",
        TRAINING,
    ),
    "eval": Command(
        "perplexity of a model, or of two side by side",
        _eval,
        (EvalConfig,),
        "secateur eval --model ./small --against ./llama --data wiki.test.raw",
        ("evaluating", "Lower --batch-size or --seq-len, or choose a smaller model."),
    ),
    "export": Command(
        "write a checkpoint in another format",
        _export,
        (ExportConfig,),
        f"secateur export --model ./small --format {PADDED} --output ./small-padded",
    ),
    "extract-text": Command(
        "write the text model of one that also reads pictures or sound, alone; computes what the whole does of text",
        _extract_text,
        (ExtractTextConfig,),
        "secateur extract-text ./gemma-3-4b ./gemma-3-4b-text",
    ),
    "push": Command(
        "put a result on the hub: a folder that prune, adapt or export wrote, or a GGUF file",
        _push,
        (PushConfig,),
        "secateur push ./small my-name/llama-small",
    ),
    "sample": Command(
        "what a model answers to prompts, or two models side by side",
        _sample,
        (SampleConfig,),
        'secateur sample --model ./small --against ./llama --prompts "Why is the sky blue?"',
        ("writing answers", "Lower --max-new-tokens, give shorter prompts, or choose a smaller model."),
    ),
    "report": Command(
        "one self-contained page about a run, or about several side by side",
        _report,
        (ReportConfig,),
        "secateur report ./small",
    ),
    "plan": Command(
        "what a run of prune would remove, and the memory it takes; reads no weights",
        _plan,
        (PlanConfig,),
        "secateur plan --model ./llama --sparsity 0.5 --batch-size 4 --seq-len 1024",
    ),
    "bench": Command(
        "time a model against another: latency, decoding speed, memory, sizes",
        _bench,
        (BenchConfig,),
        "secateur bench --model ./small --against ./llama",
        ("measuring", "Lower --batch-sizes or --seq-len, pass --no-memory, or choose a smaller model."),
    ),
    "recipes": Command(
        "list the sets of options that ship with secateur, or print some with their comments",
        recipes,
        (RecipesConfig,),
        "secateur recipes best",
    ),
    "schema": Command(
        "the options of a command as a JSON schema, so that an editor completes and checks a YAML",
        _schema,
        (SchemaConfig,),
        "secateur schema --of prune > prune.schema.json",
    ),
    "families": Command(
        "list the architectures that can be pruned", families, (FamiliesConfig,), "secateur families --all"
    ),
    "criteria": Command("list what can score the units", criteria),
}
