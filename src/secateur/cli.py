"""The command line: options to configs, errors to exit codes. No logic of its own.

Flags are generated from the config dataclasses; torch is imported only when a command runs.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from . import __version__
from .config import ExportConfig, PruneConfig, QuickstartConfig
from .config_eval import EvalConfig, ReportConfig, SampleConfig
from .errors import InputError, OutOfMemoryError, SecateurError
from .options import build
from .registry import did_you_mean

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (0 done, 2 bad input, 3 memory, 4 verification, 5 numbers)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # PEFT and transformers tell each other about their deprecations; there is nothing a user could do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        command, config = _parse(arguments)
        return command(config)
    except SecateurError as error:
        return _fail(error, debug="--debug" in arguments)
    except KeyboardInterrupt:
        print("secateur: interrupted; nothing was written to the output folder.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if memory := _as_out_of_memory(error):
            return _fail(memory, debug="--debug" in arguments)
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
    for name, (summary, cls, _, example) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}" if example else None,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if cls is not None:
            _add_options(sub, cls)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {arguments[0]!r}. {did_you_mean(arguments[0], COMMANDS)}Known: {known}.")
    given = vars(parser.parse_args(arguments or ["--help"]))
    name = given.pop("command")
    given.pop("debug", None)
    _, cls, command, _ = COMMANDS[name]
    if cls is None:
        return command, None
    return command, build(cls, given, given.pop("config", None))


def _add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """One flag per field; values stay text, so that YAML and the command line are converted in one place."""
    hints = get_type_hints(cls)
    groups: dict[str, Any] = {}
    for f in fields(cls):
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
    if int in kinds and float in kinds:
        return "STEPS|FRACTION"
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def _fail(error: SecateurError, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    print(f"secateur: error: {error}", file=sys.stderr)
    return error.exit_code


def _as_out_of_memory(error: Exception) -> OutOfMemoryError | None:
    import torch

    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or refused:
        return OutOfMemoryError(
            "out of memory. Raise --accumulation (smaller micro-batches), lower --seq-len or --batch-size, "
            "or choose a smaller model."
        )
    return None


def _prune(config: PruneConfig) -> int:
    from .prepare import prepare
    from .progress import Progress
    from .prune import prune
    from .summary import loading_lines, run_summary

    job = prepare(config)
    progress = Progress(job.total_steps)
    result = prune(job, progress)
    print(run_summary(result))
    print(loading_lines(result))
    return 0


def _quickstart(config: QuickstartConfig) -> int:
    from .quickstart import quickstart

    quickstart(config)
    return 0


def _eval(config: EvalConfig) -> int:
    from .assess import evaluate_models

    print(evaluate_models(config))
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


def _families(_: None) -> int:
    from .families import FAMILIES

    for name, family in FAMILIES.items():
        print(f"{name:12} {', '.join(path.rsplit('.', 1)[-1] for path in family.linears)}")
    return 0


def _criteria(_: None) -> int:
    from .criteria import CRITERIA

    for name, criterion in CRITERIA.items():
        needs = ", ".join(sorted(criterion.needs)) or "nothing"
        print(f"{name:12} needs {needs}. {(criterion.__doc__ or '').split(': ', 1)[-1]}")
    return 0


COMMANDS: dict[str, tuple[str, type | None, Callable[[Any], int], str]] = {
    "quickstart": (
        "prune a small real model on real text: no data and no hub needed, a few minutes",
        QuickstartConfig, _quickstart, "secateur quickstart",
    ),
    "prune": (
        "prune a model while LoRA fine-tunes it",
        PruneConfig, _prune, "secateur prune --model ./llama --data notes.jsonl --sparsity 0.2 --output ./small",
    ),
    "eval": (
        "perplexity of a model, or of two side by side",
        EvalConfig, _eval, "secateur eval --model ./small --against ./llama --data wiki.test.raw",
    ),
    "export": (
        "write a checkpoint in another format",
        ExportConfig, _export, "secateur export --model ./small --format padded --output ./small-padded",
    ),
    "sample": (
        "what a model answers to prompts, or two models side by side",
        SampleConfig, _sample, 'secateur sample --model ./small --against ./llama --prompts "Why is the sky blue?"',
    ),
    "report": (
        "one self-contained page about a run, or about several side by side",
        ReportConfig, _report, "secateur report ./small",
    ),
    "families": ("list the architectures that can be pruned", None, _families, ""),
    "criteria": ("list what can score the units", None, _criteria, ""),
}  # fmt: skip
