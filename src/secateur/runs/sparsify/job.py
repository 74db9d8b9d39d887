"""Everything about a run of `sparsify` that can be checked before weights are loaded or time is spent."""

from dataclasses import dataclass

from transformers import AutoModelForCausalLM, PreTrainedConfig

from ...architecture.building import empty_model
from ...architecture.discovery import check_text_model
from ...architecture.families import check_not_refused, family_of
from ...architecture.layout import own_name
from ...checkpoint.dry import check_config
from ...config.sparsify import LEARNT, SparsifyConfig
from ...models.benchmark import parameter_count
from ...models.coverage import planned_lora
from ...models.stored import checkpoint_dtype
from ...sparsity.layers import SparseLayer, check_share, sparse_layers
from ...sparsity.masked import masked_bytes
from ...sparsity.pst import pst_bytes
from ...sparsity.walk import walk_bytes
from ...system.errors import InputError
from ...system.launcher import launched
from ...system.progress import human_bytes
from ...training.finetune import lora_config
from ...training.job import Job, check_lengths, open_model, read_inputs


@dataclass(frozen=True, eq=False)
class SparsifyJob(Job):
    """A run of `sparsify` whose inputs are known to be good."""

    config: SparsifyConfig
    layers: tuple[SparseLayer, ...]

    @property
    def calibration_rows(self) -> list[int]:
        """Sequences of the data that are looked at, at even distances."""
        if self.config.method in ("magnitude", LEARNT):
            return []
        wanted = -(-self.config.calibration_tokens // self.config.seq_len)
        count = min(wanted, len(self.blocks))
        return [number * len(self.blocks) // count for number in range(count)]

    @property
    def linears(self) -> list[str]:
        """Names of the linears that get LoRA unless `--targets` says otherwise: those with zeros."""
        return lora_names(self.layers)


def lora_names(layers: tuple[SparseLayer, ...]) -> list[str]:
    return list(dict.fromkeys(own_name(path) for layer in layers for path in layer.linears))


def prepare_sparsify(config: SparsifyConfig) -> SparsifyJob:
    """Check a run's inputs, cheapest first, and read its data.

    Raises:
        InputError: anything about model, data, options or output that would make the run fail later.
    """
    if launched() > 1:
        raise InputError(f"{launched()} processes: sparsify runs in one: start it without a launcher.")
    source, model_config = open_model(config)
    layers, needed, memory = _plan(config, model_config)
    job = read_inputs(config, source, model_config, needed)
    steps = 0 if config.steps == 0 else job.total_steps
    values = {**vars(job), "total_steps": steps, "notes": (*job.notes, memory)}
    return SparsifyJob(**values, layers=layers)


def _plan(config: SparsifyConfig, model_config: PreTrainedConfig) -> tuple[tuple[SparseLayer, ...], int, str]:
    """The layers, the bytes of the result, and what memory it takes, from the model without weights.

    Raises:
        InputError: a model that cannot be made sparse so, or a LoRA that does not fit it.
    """
    if not config.family:
        check_not_refused(str(model_config.model_type))
    if model_config.is_encoder_decoder:
        raise InputError(
            f"--model {config.model}: {model_config.model_type} is an encoder-decoder, and this command prunes causal "
            "language models."
        )
    check_text_model(model_config)
    check_lengths(config, model_config)
    if not config.family and type(model_config) not in AutoModelForCausalLM._model_mapping:
        family_of(model_config.model_type)
    empty = empty_model(model_config, trust_remote_code=config.trust_remote_code)
    layers = sparse_layers(empty, config.zeros, config.family)
    check_share(empty, layers, config.zeros, config.method)
    check_config(empty.config)
    size = parameter_count(empty) * checkpoint_dtype(model_config).itemsize
    beside = "while layers are pruned"
    walk = walk_bytes(empty, layers, config.method, config.calibration_tokens)
    if config.method == LEARNT:
        beside, walk = "for scores and masks in training", pst_bytes(empty, layers)
    masked = masked_bytes(empty, layers) if config.mask_lora else 0
    if config.steps != 0:
        planned_lora(empty, config, lora_config(config, lora_names(layers)))  # uses it up
    words = f"memory: {human_bytes(size)} for the model"
    words += f", about {human_bytes(walk)} beside it {beside}" if walk else ""
    return layers, size, words + (f", {human_bytes(masked)} for masked LoRA in training" if masked else "")
