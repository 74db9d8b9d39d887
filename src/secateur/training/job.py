"""The checked inputs that every training command shares: model, data, output, length of the run."""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..architecture.families import Family
from ..checkpoint.dry import check_beside
from ..config.options import known_options
from ..config.run import RunConfig
from ..data.documents import check_spec, fingerprint
from ..data.encoding import start_of
from ..data.inputs import evaluation_data, training_data
from ..data.pairs import Pairs
from ..data.tokens import Blocks, left_out_of, require_batches
from ..evaluation.perplexity import token_faults
from ..models.adapter import GivenAdapter, read_adapter
from ..models.devices import device_of
from ..models.files import check_checkpoint, contents_of
from ..models.loading import load_config
from ..models.original import check_load_in
from ..models.source import ModelSource, resolve_model
from ..models.tokenizers import file_of, load_tokenizer, tell_other_tokenizer
from ..system.errors import InputError, all_faults
from ..system.launcher import launched, rank
from ..system.locks import LOCK
from ..system.machine.devices import check_numbers, check_quantises
from ..system.output import check_output
from ..system.progress import phase
from ..system.records import write_json
from .checkpoints import FAILURE, check_same_run, drop_damaged, find_latest, work_folder, write_run


@dataclass(frozen=True, eq=False)
class Job:
    """A run whose inputs are known to be good."""

    config: RunConfig
    source: ModelSource
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks | Pairs
    """Of an encoder-decoder sources and targets."""
    data: list[dict[str, Any]]
    """What the training data was: names, rows, characters, hashes."""
    eval_ids: torch.Tensor | Pairs | None
    """(tokens,) of the evaluation text, or its pairs, or None."""
    eval_info: dict[str, Any]
    total_steps: int
    checkpoint: Path | None
    """Where to go on from."""
    notes: tuple[str, ...]
    """What the user should hear before the run starts."""
    adapter: GivenAdapter | None
    """What LoRA starts from (`--adapter`)."""

    @property
    def family(self) -> Family | None:
        """The model's layout, where more than its model type says it."""
        return None

    @property
    def records(self) -> dict[str, Any]:
        """Name of a file in the run's folder -> what it holds from the start."""
        return {}

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def work(self) -> Path:
        """Folder of the run's records and training checkpoints until the result is written."""
        return work_folder(self.output)

    @property
    def tokens_per_step(self) -> int:
        """Over all processes; of pairs, on average and without padding."""
        return round(self.config.batch_size * launched() * self.blocks.tokens_a_row)

    @property
    def eval_seq_len(self) -> int:
        return self.config.eval_seq_len or self.config.seq_len


def open_model(config: RunConfig, *, encoder_decoders: bool = False) -> tuple[ModelSource, PreTrainedConfig]:
    """Check the names of data, output and model, and read the model's configuration; no weights.

    Args:
        encoder_decoders: whether these are taken, too.
    Raises:
        InputError: one of them cannot be used.
    """
    for spec in (*config.data, *([config.eval_data] if config.eval_data else [])):
        if spec != spec.encode("utf-8", "replace").decode():
            remedy = "rename it" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1, or rename it"
            raise InputError(f"data {spec!r}: its name is not UTF-8, and the records must have it: {remedy}.")
        check_spec(spec)
    check_output(Path(config.output), overwrite=config.overwrite, inputs=_inputs(config))
    check_device(config)
    source = resolve_model(config.model)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code, encoder_decoders=encoder_decoders)
    check_load_in(config.load_in, source, model_config)
    return source, model_config


def check_device(config: RunConfig) -> None:
    """Whether a run can train where its options say.

    Raises:
        InputError: the device is not there, or lacks the precision, or the quantised products.
    """
    device = device_of(config)
    check_numbers(device, config.dtype, trains=True)
    check_quantises(device, config.load_in)


def _inputs(config: RunConfig) -> dict[str, str]:
    """What is read from paths -> its flag; a model's folder has rules of its own."""
    found = dict.fromkeys(config.data, "--data")
    single = {"--eval-data": config.eval_data, "--adapter": config.adapter}
    single |= {"--model": config.model} if config.model.lower().endswith(".gguf") else {}
    return found | {name: given for given, name in single.items() if name}


def read_inputs(config: RunConfig, source: ModelSource, model_config: PreTrainedConfig, needed_bytes: int) -> Job:
    """Check weights, disk and lengths, and read the data.

    Args:
        needed_bytes: what the result will take on disk.
    Raises:
        InputError: anything about them that would make the run fail later.
    """
    check_checkpoint(source)
    # Of a GGUF file's folder nothing else is the model's: a result may well lie beside the file.
    folder = Path(source.path) if source.is_local and not source.gguf_file else None
    output = Path(config.output)
    check_output(output, overwrite=config.overwrite, model_folder=folder, needed_bytes=needed_bytes)
    if not config.resume:
        _check_work(work_folder(output), config.overwrite)
    check_lengths(config, model_config)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    check_beside(output, source, tokenizer)
    if config.adapter:
        tell_other_tokenizer(str(Path(config.adapter).expanduser()), tokenizer)
    with phase("reading and tokenising the training data"):
        blocks = training_data(config, model_config, tokenizer)
    require_batches(blocks, config.batch_size * launched())
    _check_vocabulary(blocks, model_config, config.model)
    eval_ids, eval_info = None, dict[str, Any]()
    if config.eval_data:
        eval_ids, eval_info = evaluation_data(config, model_config, tokenizer)
    per_epoch = len(blocks) // (config.batch_size * launched())
    total_steps = config.steps or max(1, math.ceil(config.epochs * per_epoch))
    data = fingerprint(config.data)
    contents = contents_of(source, model_config)
    checkpoint, notes = (
        _find_checkpoint(config, data, contents, start_of(tokenizer, config.bos)) if config.resume else (None, ())
    )
    adapter = read_adapter(config.adapter) if config.adapter else None
    notes = (*notes, *blocks.left_out.notes(), *_end_notes(blocks, source, model_config, tokenizer))
    notes = (*notes, *left_out_of(eval_info), *([adapter.words] if adapter else []))
    return Job(
        config, source, model_config, tokenizer, blocks, data, eval_ids, eval_info, total_steps, checkpoint, notes,
        adapter,
    )  # fmt: skip


def _end_notes(
    blocks: Blocks | Pairs, source: ModelSource, model_config: PreTrainedConfig, tokenizer: Any
) -> list[str]:
    """That what ends a reply in the data is no end to those who will run the result, if so."""
    file = file_of(source.path, "generation_config.json")
    try:
        settings = json.loads(file.read_text("utf-8")) if file else {}
    except (OSError, ValueError):
        return []
    own = getattr(model_config.get_text_config(), "eos_token_id", None)
    known = settings.get("eos_token_id", own) if isinstance(settings, dict) else own
    known = [*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id]
    return [
        f"the chat template ends a reply with {tokenizer.convert_ids_to_tokens(token)}, which is no end by the model's "
        f"eos_token_id: add {token} to it in the result's generation_config.json, or others do not stop there."
        for token in blocks.enders
        if token not in known
    ]


def probe_of(job: Job) -> torch.Tensor:
    """(1, tokens) of real training text, for comparing logits; of pairs, of several sources where one is short."""
    ids = [token for row in job.blocks.input_ids[:64] for token in row]
    return torch.tensor([ids[: min(256, job.blocks.seq_len)]])


def check_lengths(config: RunConfig, model_config: PreTrainedConfig) -> None:
    """Refuse blocks and segments that are longer than what a model can read.

    Raises:
        InputError: names the option and the model's length.
    """
    longest = getattr(model_config, "max_position_embeddings", None)
    lengths = {"--seq-len": config.seq_len, "--eval-seq-len": config.eval_seq_len or 0}
    lengths["--target-seq-len"] = config.target_seq_len or 0
    for flag, length in lengths.items():
        if longest is not None and length > longest:
            raise InputError(f"{flag} {length} is longer than the model's {longest} positions: use at most {longest}.")


def _check_vocabulary(blocks: Blocks | Pairs, model_config: PreTrainedConfig, model: str) -> None:
    """No token may lie outside the embedding; the tokenizer may be another model's."""
    all_faults(token_faults(torch.tensor([blocks.largest_token]), model_config.get_text_config().vocab_size, model))


SEARCH = "search.json"
"""The state of a search (`--allocation search`) in the run's folder: it knows whether it is of the same run."""
EXPERTS = "experts.json"
"""Which experts went before training (`--experts`), in the run's folder."""
HARMLESS = (
    "device",
    "recipe",
    "output",
    "overwrite",
    "dry_run",
    "resume",
    "save_steps",
    "process_timeout",
    "report_to",
    "eval_data",
    "eval_steps",
    "eval_tokens",
    "eval_seq_len",
    "push_to_hub",
    "private",
    "base_model",
)
"""Options that may change on resume."""


def _find_checkpoint(
    config: RunConfig, data: list[dict[str, Any]], contents: str | None, start: list[int]
) -> tuple[Path | None, tuple[str, ...]]:
    """The checkpoint to go on from, after a check that it belongs to this run, and what to say about it."""
    work = work_folder(Path(config.output))
    checkpoint, skipped = find_latest(work)
    if checkpoint is None:
        return None, (*skipped, f"nothing to resume in {work}: starting at step 1")
    # Runs of earlier versions did without the options that they did not know, which is the default. But they put no
    # token before their blocks, which is what this one does where there is none.
    formerly = {name: each.default for name, each in known_options(type(config)).items() if each.default is not MISSING}
    if getattr(config, "experts", None):
        formerly["experts_by"] = "router"
    formerly["bos"] = config.bos if not start else None
    check_same_run(work, asdict(config), data, HARMLESS, contents, formerly=json.loads(json.dumps(formerly)))
    return checkpoint, (*skipped, f"resuming from {checkpoint.name}")


def _check_work(work: Path, overwrite: bool) -> None:
    """An earlier run's checkpoints are kept unless the user says otherwise."""
    if work.exists() and not work.is_dir():
        raise InputError(f"{work} is a file, and the run's records would go there: move it away.")
    if any(work.glob("checkpoint-*")) and not overwrite:
        raise InputError(
            f"{work} holds training checkpoints of an earlier run: pass --resume to go on with it, --overwrite to drop "
            "them, or choose another --output."
        )


def make_work(job: Job) -> None:
    """The folder of the run's records: empty, or as the run that goes on left it."""
    if rank() > 0:
        return
    (job.work / FAILURE).unlink(missing_ok=True)
    if job.checkpoint is not None:
        drop_damaged(job.work, job.checkpoint)
        return
    kept = (LOCK, EXPERTS, SEARCH) if job.config.resume else (LOCK, EXPERTS)
    for path in job.work.iterdir() if job.work.exists() else ():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    job.work.mkdir(parents=True, exist_ok=True)
    write_run(job.work, asdict(job.config), job.data, contents_of(job.source, job.model_config))
    for name, record in job.records.items():
        write_json(job.work / name, record)


def first_batches(job: Job, count: int) -> Iterator[torch.Tensor]:
    """Indices into the training data of the first `count` batches, of all processes together."""
    order = torch.randperm(len(job.blocks), generator=torch.Generator().manual_seed(job.config.seed))
    size = job.config.batch_size * launched()
    yield from order.repeat(-(-count * size // len(order))).split(size)[:count]
