"""The command line: options to configs, errors to exit codes. No logic of its own.

Flags are generated from the config dataclasses; torch is imported only when a command runs.
"""

import argparse
import errno
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

from . import __version__
from .config import CompareConfig, ExportConfig, PruneConfig, QuickstartConfig
from .config_adapt import AdaptConfig
from .config_eval import EvalConfig, ReportConfig, SampleConfig
from .config_speed import BenchConfig, PlanConfig
from .errors import InputError, OutOfMemoryError, SecateurError, disk_is_full, out_of_memory
from .options import build
from .progress import Escaping, safe
from .registry import did_you_mean
from .signals import Terminated, terminated_tidily

if TYPE_CHECKING:
    from .grid import Comparison

INTERRUPTED = 130
FILE_SYSTEM = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
)
"""Refusals that name a place which the user chose."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (0 done, 2 bad input, 3 memory, 4 verification, 5 numbers)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # PEFT and transformers tell each other about their deprecations; there is nothing a user could do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # bitsandbytes, which PEFT imports where it is installed, tells of a kernel that only its 4-bit products would use.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    debug = "--debug" in arguments
    try:
        # What commands print has names and texts in it that come from models and data.
        with terminated_tidily(), redirect_stdout(Escaping(sys.stdout)):
            command, config = _parse(arguments)
            return command(config)
    except SecateurError as error:
        return _fail(error, debug=debug)
    except KeyboardInterrupt as error:
        print("secateur: interrupted; nothing was written to the output folder.", file=sys.stderr)
        return error.exit_code if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if ours := _as_ours(error, arguments):
            return _fail(ours, debug=debug)
        raise


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def _parse(arguments: list[str]) -> tuple[Callable[[Any], int], Any]:
    parser = _Parser(
        prog="secateur",
        description="Prune a large language model while LoRA fine-tunes it; get an ordinary, smaller checkpoint.",
        epilog="secateur COMMAND --help lists a command's options. Start with: secateur quickstart",
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example: {command.example}" if command.example else None,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        _add_options(sub, command.options)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {arguments[0]!r}. {did_you_mean(arguments[0], COMMANDS)}Known: {known}.")
    given = vars(parser.parse_args(arguments or ["--help"]))
    name = given.pop("command")
    given.pop("debug", None)
    command = COMMANDS[name]
    if not command.options:
        return command.run, None
    file = given.pop("config", None)
    if command.options[0] is CompareConfig:
        from .grid import build_comparison

        return command.run, build_comparison(given, file)
    return command.run, build(command.options[0], given, file)


def _add_options(parser: argparse.ArgumentParser, classes: tuple[type, ...]) -> None:
    """One flag per field; values stay text, so that YAML and the command line are converted in one place."""
    if not classes:
        return
    hints = {name: hint for cls in reversed(classes) for name, hint in get_type_hints(cls).items()}
    known = {f.name: f for cls in reversed(classes) for f in fields(cls)}
    groups: dict[str, Any] = {}
    for f in known.values():
        group = groups.setdefault(f.metadata["group"], parser.add_argument_group(f.metadata["group"]))
        flag = "--" + f.name.replace("_", "-")
        text = f.metadata["help"].replace("%", "%%")
        if f.metadata["positional"]:
            group.add_argument(f.name, help=text, metavar=f.metadata["metavar"], nargs="*")
            continue
        if hints[f.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        if f.default is MISSING:
            text += " (required)"
        elif f.default not in (None, ()):
            text += f" (default: {f.default})"
        metavar = "{" + ",".join(f.metadata["choices"]) + "}" if f.metadata["choices"] else _metavar(hints[f.name])
        group.add_argument(flag, help=text, metavar=metavar, nargs="+" if get_origin(hints[f.name]) is tuple else None)
    parser.add_argument("--config", metavar="YAML", help="read options from a file; flags win over it")


def _metavar(hint: Any) -> str:
    kinds = get_args(hint) or (hint,)
    if int in kinds and str in kinds:
        return "SIZE"
    if int in kinds and float in kinds:
        return "STEPS|FRACTION"
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def _fail(error: SecateurError, *, debug: bool) -> int:
    if debug:
        import traceback

        print(safe("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    print(f"secateur: error: {safe(str(error))}", file=sys.stderr)
    return error.exit_code


def _as_ours(error: Exception, arguments: list[str]) -> SecateurError | None:
    """What a user can mend but no command has put into words: memory, and a file system's refusals."""
    if isinstance(error, OSError) and (error.errno in FILE_SYSTEM or disk_is_full(error)):
        reason = error.strerror or str(error)
        place = str(error.filename or "")
        place = f"{place[:200]} ... ({len(place):,} characters)" if len(place) > 200 else place
        return InputError(
            f"{place + ': ' if place else ''}{reason}: check the path, its permissions and the room on its disk."
        )
    if isinstance(error, pickle.UnpicklingError):
        return InputError(
            "an adapter's or model's file is a pickle, which can run code when it is opened: refused. Where you trust "
            "it, convert it once with save_pretrained, which writes safetensors, and give that."
        )
    if out_of_memory(error):
        command = COMMANDS.get(arguments[0] if arguments else "")
        part, remedy = (command.memory if command else None) or ("running", "Choose a smaller model.")
        return OutOfMemoryError(f"out of memory while {part}. {remedy}")
    return None


def _prune(config: PruneConfig) -> int:
    from .distributed import leave
    from .launcher import rank
    from .prepare import prepare
    from .progress import Progress
    from .prune import prune
    from .summary import loading_lines, run_summary

    job = prepare(config)
    if rank() > 0:
        with open(os.devnull, "w") as silence:
            prune(job, Progress(job.total_steps, silence))
        leave()
        return 0
    result = prune(job, Progress(job.total_steps))
    leave()
    print(run_summary(result))
    print(loading_lines(result))
    return 0


def _adapt(config: AdaptConfig) -> int:
    from .adapt import adapt, prepare_adapt
    from .distributed import leave
    from .launcher import rank
    from .progress import Progress
    from .summary import adapt_summary, loading_lines

    job = prepare_adapt(config)
    if rank() > 0:
        with open(os.devnull, "w") as silence:
            adapt(job, Progress(job.total_steps, silence))
        leave()
        return 0
    result = adapt(job, Progress(job.total_steps))
    leave()
    print(adapt_summary(result))
    print(loading_lines(result))
    return 0


def _quickstart(config: QuickstartConfig) -> int:
    from .quickstart import quickstart

    quickstart(config)
    return 0


def _eval(config: EvalConfig) -> int:
    from .assess import evaluate_models

    if words := evaluate_models(config):
        print(words)
    return 0


def _compare(comparison: "Comparison") -> int:
    from .distributed import part_ways

    share = part_ways()  # before any import that looks for GPUs
    from .compare import compare

    if share.number > 0:
        with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
            compare(comparison, share)
        return 0
    print("\n" + compare(comparison, share))
    print(f"\ntables, plot and records: {comparison.settings.output}")
    return 0


def _export(config: ExportConfig) -> int:
    from .export import export_config
    from .summary import export_summary

    print(export_summary(export_config(config).to_dict()))
    return 0


def _sample(config: SampleConfig) -> int:
    from .sample import sample_models

    print(sample_models(config))
    return 0


def _report(config: ReportConfig) -> int:
    from .report import make_report

    for path in make_report(config):
        print(path)
    return 0


def _bench(config: BenchConfig) -> int:
    from .bench import bench

    print(bench(config))
    return 0


def _plan(config: PlanConfig) -> int:
    from .plan import plan

    print(plan(config))
    return 0


def _families(_: None) -> int:
    from .families import FAMILIES

    for name, family in FAMILIES.items():
        units = "; ".join(f"{kind} ({', '.join(formats)})" for kind, formats in family.formats.items())
        print(f"{name:12} {units}")
        for note in family.notes:
            print(f"{'':12} {note}")
    print("\nkind of unit (formats in which a model without some of them can be written)")
    print("stock: loads anywhere; layered: with a modelling file (trust_remote_code); padded: stock, zeros kept")
    return 0


def _criteria(_: None) -> int:
    from .criteria import CRITERIA

    for name, criterion in CRITERIA.items():
        needs = ", ".join(sorted(criterion.needs)) or "nothing"
        print(f"{name:19} {criterion.summary} (needs {needs})")
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
        _prune,
        (PruneConfig,),
        "secateur prune --model ./llama --data notes.jsonl --sparsity 0.2 --output ./small",
        TRAINING,
    ),
    "adapt": Command(
        "train a LoRA adapter from a high rank down to a low one",
        _adapt,
        (AdaptConfig,),
        "secateur adapt --model ./llama --data gsm8k.jsonl --init-rank 64 --rank 8 --output ./adapter",
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
        "secateur export --model ./small --format padded --output ./small-padded",
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
    "families": Command("list the architectures that can be pruned", _families),
    "criteria": Command("list what can score the units", _criteria),
}
