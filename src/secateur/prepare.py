"""Everything about a run that can be checked before weights are loaded or time is spent."""

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from .budget import Budget, BudgetOptions, make_budget
from .config import PruneConfig
from .criteria import CRITERIA
from .data import Blocks, evaluation_tokens, require_batches, training_blocks
from .documents import check_spec, fingerprint
from .errors import InputError
from .families import family_of
from .models import ModelSource, check_checkpoint, load_config, load_tokenizer, resolve_model
from .output import check_output
from .schedule import Schedule, make_schedule
from .stock import accepts
from .units import find_units


@dataclass(frozen=True, eq=False)
class Job:
    """A run whose inputs are known to be good."""

    config: PruneConfig
    source: ModelSource
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    data: list[dict[str, Any]]
    """What the training data was: names, rows, characters, hashes."""
    eval_ids: torch.Tensor | None
    """(tokens,) of the evaluation text, or None."""
    eval_info: dict[str, Any]
    total_steps: int
    schedule: Schedule
    budget: Budget

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def work(self) -> Path:
        """Folder of the run's records and training checkpoints until the result is written."""
        return self.output.with_name(self.output.name + ".run")

    @property
    def eval_seq_len(self) -> int:
        return self.config.eval_seq_len or self.config.seq_len


def prepare(config: PruneConfig) -> Job:
    """Check a run's inputs, cheapest first, and read its data.

    Raises:
        InputError: anything about model, data, options or output that would make the run fail later.
    """
    CRITERIA[config.criterion]  # an unknown name is refused here
    for spec in (*config.data, *([config.eval_data] if config.eval_data else [])):
        check_spec(spec)
    output = Path(config.output)
    check_output(output, overwrite=config.overwrite, model_folder=None, needed_bytes=None)
    source = resolve_model(config.model)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code)
    budget, dense_params = _plan(config, model_config)
    check_checkpoint(source)
    folder = Path(source.path) if Path(source.path).is_dir() else None
    kept_bytes = (dense_params - budget.removed_params) * checkpoint_dtype(model_config).itemsize
    check_output(output, overwrite=config.overwrite, model_folder=folder, needed_bytes=kept_bytes)
    _check_work(output.with_name(output.name + ".run"), config.overwrite)
    _check_lengths(config, model_config)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    blocks = training_blocks(
        config.data, tokenizer, seq_len=config.seq_len, response_only=config.response_only, seed=config.seed
    )
    require_batches(blocks, config.batch_size)
    eval_ids, eval_info = None, dict[str, Any]()
    if config.eval_data:
        eval_ids, eval_info = evaluation_tokens(config.eval_data, tokenizer, max_tokens=config.eval_tokens)
        if len(eval_ids) < (config.eval_seq_len or config.seq_len):
            raise InputError(
                f"--eval-data {config.eval_data}: {len(eval_ids)} tokens, fewer than one segment of "
                f"{config.eval_seq_len or config.seq_len}: lower --eval-seq-len or give more text."
            )
    per_epoch = len(blocks) // config.batch_size
    total_steps = config.steps or max(1, math.ceil(config.epochs * per_epoch))
    schedule = make_schedule(config.schedule, config.prune_start, config.prune_end, config.frequency, total_steps)
    return Job(
        config, source, model_config, tokenizer, blocks, fingerprint(config.data), eval_ids, eval_info,
        total_steps, schedule, budget,
    )  # fmt: skip


def checkpoint_dtype(model_config: PreTrainedConfig) -> torch.dtype:
    """The precision of a checkpoint's weights: that of the result, too."""
    return model_config.dtype if isinstance(model_config.dtype, torch.dtype) else torch.float32


def budget_options(config: PruneConfig) -> BudgetOptions:
    """The part of the options that says what may go."""
    return BudgetOptions(
        config.sparsity,
        config.attention_sparsity,
        config.allocation,
        config.protect_first,
        config.protect_last,
        config.floor,
        config.round_to,
    )


def _plan(config: PruneConfig, model_config: PreTrainedConfig) -> tuple[Budget, int]:
    """The budget, and the parameters of the dense model, from a model without weights."""
    family = family_of(model_config.model_type, config.family)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
    units = find_units(empty, family, config.attention)
    legal = partial(accepts, model_config, family, model_class=config.model_class)
    return make_budget(units, budget_options(config), legal), sum(p.numel() for p in empty.parameters())


def _check_lengths(config: PruneConfig, model_config: PreTrainedConfig) -> None:
    longest = getattr(model_config, "max_position_embeddings", None)
    for flag, length in (("--seq-len", config.seq_len), ("--eval-seq-len", config.eval_seq_len or 0)):
        if longest is not None and length > longest:
            raise InputError(f"{flag} {length} is longer than the model's {longest} positions: use at most {longest}.")


def _check_work(work: Path, overwrite: bool) -> None:
    """An earlier run's checkpoints are kept unless the user says otherwise."""
    if work.exists() and not work.is_dir():
        raise InputError(f"{work} is a file, and the run's records would go there: move it away.")
    if any(work.glob("checkpoint-*")) and not overwrite:
        raise InputError(
            f"{work} holds training checkpoints of an earlier run: move them away, choose another --output, "
            "or pass --overwrite to drop them."
        )


def make_work(work: Path) -> None:
    """An empty folder for the run's records."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
