"""`secateur.prune` and its like: what the commands of these names do, with their options as arguments."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..config.adapt import AdaptConfig
from ..config.evaluation import EvalConfig
from ..config.files.recipes import build_values, read_with_recipe
from ..config.prune import PruneConfig
from ..config.sparsify import SparsifyConfig
from ..report.runs import cleaned
from ..system.errors import InputError
from ..system.launcher import launched
from ..system.places import check_options_kept
from ..system.progress import Progress, phase
from ..system.quiet import deprecations_unheard
from ..system.records import plain
from ..system.voice import speaks_python
from .compared import CompareResult
from .evaluated import EvalResult, eval_result
from .loading import load_result
from .sparsified import SparsifyResult
from .trained import AdaptResult, PruneResult

C = TypeVar("C")


@contextmanager
def _as_function() -> Iterator[None]:
    """A command that Python calls: its errors name arguments, and what is not the caller's to mend is not said."""
    with speaks_python(options=True), deprecations_unheard():
        yield


@_as_function()
def prune(*, config: str | os.PathLike[str] | None = None, **options: Any) -> PruneResult:
    """`secateur prune`: prune a model while LoRA fine-tunes it, write the smaller checkpoint, measure both models.

    `secateur.prune(model="./llama", data="notes.jsonl", sparsity=0.2, output="./small")`. With `resume=True` a run
    that was stopped goes on, and one that is done is loaded.

    Args:
        config: a YAML file of options, below those given here.
        options: those of the command (`secateur prune --help-all`), with `_` for `-`; `recipe` too.
    Raises:
        InputError: anything that would make the run fail later, before any work; `dry_run`, and several processes,
            which go with the command.
        NumericsError, OutOfMemoryError, VerificationError: as of the command.
    """
    from ..runs.prune import prune as run
    from ..training.prepare import prepare

    made = _options(PruneConfig, "prune", config, options)
    _train(made, prepare, run)
    return _result(PruneResult, made.output)


@_as_function()
def adapt(*, config: str | os.PathLike[str] | None = None, **options: Any) -> AdaptResult:
    """`secateur adapt`: train a LoRA adapter from a high rank down to a low one.

    Args and errors as of `prune`; the options are those of `secateur adapt`.
    """
    from ..runs.adapt import adapt as run
    from ..runs.adapt import prepare_adapt

    made = _options(AdaptConfig, "adapt", config, options)
    _train(made, prepare_adapt, run)
    return _result(AdaptResult, made.output)


@_as_function()
def sparsify(*, config: str | os.PathLike[str] | None = None, **options: Any) -> SparsifyResult:
    """`secateur sparsify`: put zeros into a model's weights by a pattern, and train LoRA over them.

    `secateur.sparsify(model="./llama", data="c4.jsonl", pattern="2:4", method="wanda", output="./sparse")`. For a model
    in memory there is `secateur.sparsity.sparsify_`.

    Args and errors as of `prune`; the options are those of `secateur sparsify`.
    """
    from ..runs.sparsify.command import sparsify as run
    from ..runs.sparsify.job import prepare_sparsify

    made = _options(SparsifyConfig, "sparsify", config, options)
    _train(made, prepare_sparsify, run)
    return _result(SparsifyResult, made.output)


@_as_function()
def compare(*, config: str | os.PathLike[str] | None = None, **options: Any) -> CompareResult:
    """`secateur compare`: a grid of runs of `prune` under the same data, steps and budget.

    `secateur.compare(criterion=["lora", "wanda"], sparsity=[0.2, 0.5], ...)`: an option with several values is an
    axis. Cells that are recorded in `output` are not run again.

    Args and errors as of `prune`; the options are those of `secateur compare`.
    """
    from ..comparison.command import compare as run
    from ..comparison.grid import build_comparison

    _check_alone("compare")
    comparison = build_comparison(_given(options), _file(config))
    if any(cell.config.dry_run for cell in comparison.cells):
        raise _rehearsal("compare")
    run(comparison)
    return _result(CompareResult, comparison.settings.output)


@_as_function()
def eval(*, config: str | os.PathLike[str] | None = None, **options: Any) -> EvalResult:
    """`secateur eval`: perplexity and tasks of a model, or of two side by side.

    `secateur.eval(model="./small", against="./llama", data="held-out.txt")`. With `output` the record is written too.

    Args and errors as of `prune`; the options are those of `secateur eval`.
    """
    from ..evaluation.assess import evaluated

    made = _options(EvalConfig, "eval", config, options)
    record, _ = evaluated(made)
    return eval_result(cleaned(plain(record)), made.output or "the record")


def _result(kind: type[C], folder: str) -> C:
    """What a command has written, which is of its kind."""
    result = load_result(folder)
    assert isinstance(result, kind)
    return result


def _train(config: Any, prepare: Callable[[Any], Any], run: Callable[[Any, Progress], dict[str, Any]]) -> None:
    """A run to its end, as the command has it; nothing where it is done already (`resume`)."""
    from ..runs.push import check_hub, closing_lines
    from ..runs.resumed import finished, going_on

    result = finished(config)
    if result is None:
        check_hub(config)
        with phase("checking the run"):
            job = prepare(going_on(config))
        result = run(job, Progress(job.total_steps))
    if config.push_to_hub:
        print(closing_lines(result, config))


def _options(cls: type[C], command: str, file: str | os.PathLike[str] | None, given: dict[str, Any]) -> C:
    """A checked config.

    Raises:
        InputError: every fault that the options have, in one message.
    """
    _check_alone(command)
    config = build_values(cls, read_with_recipe(_given(given), _file(file), command), command)
    if file is not None:
        check_options_kept(os.fspath(file), config)
    if getattr(config, "dry_run", False):
        raise _rehearsal(command)
    return config


def _check_alone(command: str) -> None:
    if launched() > 1:
        raise InputError(
            f"secateur.{command} works in one process, and {launched()} were launched: give them the command "
            f"(torchrun ... -m secateur {command} ...), and read what it wrote with secateur.load_result."
        )


def _rehearsal(command: str) -> InputError:
    return InputError(
        f"a dry run has no result to return: run secateur {command} --dry-run with these options, or leave it out."
    )


def _file(config: str | os.PathLike[str] | None) -> str | None:
    return None if config is None else os.fspath(config)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options as YAML would have them: paths as text, tuples as lists."""
    return {name: _as_yaml(value) for name, value in options.items()}


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_as_yaml(item) for item in value] if isinstance(value, list | tuple) else value
