"""`secateur export --format adapter` to a name that ends with .gguf: a LoRA adapter as llama.cpp reads it.

llama.cpp's own converter writes the file (`libllama.CONVERT_ADAPTER`). Then llama.cpp runs the base model with it, and
its predictions are held against those of PEFT with the adapter as it was given.
"""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from ...architecture.stock import LAYERS_KEY
from ...config.prune import ExportConfig
from ...models.adapter import CONFIG, GivenAdapter, load_adapter, read_adapter
from ...models.adapter_extras import WEIGHTS
from ...models.loading import load_config, load_model
from ...models.source import ModelSource, resolve_model
from ...models.stored import checkpoint_dtype, stored_bytes
from ...models.tokenizers import load_tokenizer
from ...system.errors import InputError, VerificationError, all_faults
from ...system.output import check_output_file
from ...system.progress import human_bytes, phase
from ..comparing import logits_of
from ..probe import default_probe
from .adapters import bake_, check_plain, to_one_rank
from .agreement import agreement
from .layouts import check_depth
from .libllama import CONVERT_ADAPTER, READ_ADAPTED
from .llama_cpp import ADAPTERS, CONVERT, LIBRARY, WHEELS, check_engine
from .making import LAYERED_CLASS, beside, put, read_logits, run_or_refuse, staged

MOST_KL = 1e-4
"""Mean KL divergence (nats) of llama.cpp's predictions from PEFT's that is allowed, both in float32: as of a model."""
OF_EFFECT = 0.05
"""That much at most of the divergence which the adapter makes, so that a factor in a wrong place is seen."""
NOTHING = 1e-8
"""A divergence (nats) that is rounding: it is allowed whatever the adapter does."""


def to_adapter(config: ExportConfig) -> str:
    """`secateur export --format adapter`: a folder with one rank and scaling 1, or llama.cpp's file.

    Raises:
        InputError, VerificationError: as the two of them.
    """
    if Path(config.output).suffix.lower() != ".gguf":
        faults = [f"--engine {config.engine} goes with an --output that ends with .gguf."] if config.engine else []
        all_faults(faults)
        return to_one_rank(config)
    adapter = read_adapter(config.model)
    check_plain(Path(config.model).expanduser())
    return to_lora_file(config, adapter)


def to_lora_file(config: ExportConfig, adapter: GivenAdapter) -> str:
    """An adapter's GGUF file, which llama.cpp has read beside the base model before it is put in place.

    Raises:
        InputError: no base model at hand, one whose layers differ, what llama.cpp refuses.
        VerificationError: llama.cpp with the file does not predict what PEFT does.
    """
    output, folder = Path(config.output), Path(config.model).expanduser()
    check_output_file("--output", output, overwrite=config.overwrite, inputs={"--model": config.model})
    source = _base_of(adapter)
    model_config = load_config(source)
    check_depth(model_config, source.name)
    if model_config.to_dict().get(LAYERS_KEY):
        raise InputError(
            f"--model {config.model}: the layers of its base {source.name} differ, and llama.cpp's converter of "
            "adapters knows none that do: write the merged model (secateur adapt --merge), and the GGUF file of that."
        )
    engine = check_engine(config.engine, WHEELS | LIBRARY | ADAPTERS)
    wide = 4 / checkpoint_dtype(model_config).itemsize
    with beside(output, int((stored_bytes(source) or 0) * wide)) as work:
        base, made, baked = work / "base.gguf", work / "adapter.gguf", work / "adapter"
        baked.mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, baked / name)
        rank = bake_(baked)
        files = str(staged(source, model_config, work, None))
        with phase("llama.cpp's converters write the adapter and its base"):
            arguments = [str(baked), "--base", files, "--outfile", str(made), "--outtype", "f32"]
            run_or_refuse(engine, CONVERT_ADAPTER, {"arguments": arguments}, work, config.model)
            arguments = [files, "--outtype", "f32", "--outfile", str(base), "--model-name", "base"]
            task = {"arguments": arguments, "class": LAYERED_CLASS, "sizes": None}
            run_or_refuse(engine, CONVERT, task, work, source.name)
        moves, off = _checked(config, engine, source, work)
        size = made.stat().st_size
        put(made, output)
    return (
        f"{output}: a LoRA adapter of rank {rank} for llama.cpp, {human_bytes(size)}\n"
        f"verified: llama.cpp read it beside its base in a process of its own; it moves predictions by {moves:.3g} "
        f"nats, and those are {off:.2g} nats off PEFT's\n\n    llama-server -m BASE.gguf --lora {output}"
    )


def _base_of(adapter: GivenAdapter) -> ModelSource:
    """The model that an adapter was trained on.

    Raises:
        InputError: its configuration names none, or one that is not here.
    """
    remedy = f"put the folder of the base model into {CONFIG} (base_model_name_or_path)"
    if not adapter.base:
        raise InputError(f"--model {adapter.name} does not say which model it was trained on: {remedy}.")
    try:
        source = resolve_model(adapter.base)
    except InputError:
        raise InputError(f"--model {adapter.name}: its base model {adapter.base} is not there: {remedy}.") from None
    if not source.is_local or source.gguf_file:
        raise InputError(f"--model {adapter.name}: its base model {adapter.base} is no folder here: {remedy}.")
    return source


def _checked(config: ExportConfig, engine: str, source: ModelSource, work: Path) -> tuple[float, float]:
    """Mean KL divergence (nats) that the adapter makes, and of llama.cpp's predictions with it from PEFT's.

    Raises:
        VerificationError: these are off.
    """
    model: PreTrainedModel = load_model(source, dtype="float32")
    ids = default_probe(load_tokenizer(source), model.config.get_text_config().vocab_size)
    without = logits_of(model, ids)
    expected = logits_of(load_adapter(model, config.model), ids)
    logits = work / "logits.bin"
    task = {
        "model": str(work / "base.gguf"), "adapter": str(work / "adapter.gguf"), "ids": ids[0].tolist(), "threads": 1,
        "logits": str(logits),
    }  # fmt: skip
    with phase("llama.cpp reads the adapter and predicts"):
        said = run_or_refuse(engine, READ_ADAPTED, task, work, config.model)
    found = agreement(read_logits(logits, said["vocabulary"]), expected, ids)
    moves = agreement(without, expected, ids).kl
    if not found.kl <= min(MOST_KL, max(NOTHING, OF_EFFECT * moves)):
        raise VerificationError(
            f"{config.output}: llama.cpp with the adapter predicts {found.kl:.3g} nats off what PEFT does, and the "
            f"adapter moves predictions by {moves:.3g}. Nothing was written."
        )
    return moves, found.kl
