"""`secateur export --format compressed-tensors`: calibrate, quantise, write, read back, say what quality it costs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...architecture.config_faults import values_in
from ...architecture.stock import LAYERS_KEY
from ...checkpoint.comparing import logits_of
from ...checkpoint.export import save_model
from ...checkpoint.probe import default_probe
from ...checkpoint.tokenizer_files import write_tokenizer
from ...checkpoint.verify import fresh_process
from ...config.prune import ExportConfig
from ...evaluation.perplexity import perplexity
from ...models.devices import autocast, compute_dtype
from ...models.loading import load_config, load_model
from ...models.source import ModelSource
from ...models.stored import checkpoint_dtype
from ...models.tokenizers import load_tokenizer
from ...sparsity.moments import Moments, in_portions
from ...system.errors import InputError, VerificationError
from ...system.machine.devices import device_called
from ...system.output import check_output, replaced_whole, scratch
from ...system.progress import Progress, human_bytes
from .calibration import SEQ_LEN, calibration_segments
from .gptq import Grid, quantise

GROUPS = (128, 64, 32)
"""Inputs that share a step in 4 bits: the first that divides a linear's width is taken."""
ROWS = 32
"""vLLM's 4-bit kernel for CPUs takes outputs that this divides, those for GPUs some more; of what it fuses, all."""
HELD_OUT = 8192
"""Tokens that are measured on, and those of the calibration that come before."""
MOST_BYTES = 2 * 2**30
"""Of second moments that are held at a time."""
MOST_KL = {"int8": 0.2, "int4": 1.5}
"""Mean KL divergence (nats) on the probe up to which a quantised model counts as the one that it was made of."""

CHILD = """
import json, math, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
with open(sys.argv[1], encoding="utf-8") as file:
    job = json.load(file)
torch.set_num_threads(job["threads"])
saved = load_file(job["probe"])
model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype="auto").eval()
with torch.inference_mode():
    logits = model(saved["ids"], use_cache=False).logits.double()
    p, q = saved["logits"].double().log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    losses = []
    for segment in saved["text"]:
        found = model(segment[None, :-1], use_cache=False).logits[0].float()
        losses.append(torch.nn.functional.cross_entropy(found, segment[1:]).item())
    wrong = [name for name, weight in load_file(job["weights"]).items()
             if not torch.equal(model.get_submodule(name).weight.to(weight.dtype), weight)]
print("RESULT" + json.dumps({"kl": kl, "perplexity": math.exp(sum(losses) / len(losses)), "wrong": wrong}))
"""


@dataclass(frozen=True)
class Quantised:
    """A linear as whole numbers."""

    grid: Grid
    codes: Tensor
    """(rows, columns) int8"""
    scales: Tensor
    """(rows, groups)"""

    @property
    def weight(self) -> Tensor:
        """(rows, columns): the numbers times their steps, in the steps' precision, as readers compute it."""
        rows, groups = self.scales.shape
        parts = self.codes.to(self.scales.dtype).view(rows, groups, -1)
        return (parts * self.scales[:, :, None]).view(self.codes.shape)


def to_quantised(config: ExportConfig) -> str:
    """A checkpoint whose linears are int8 (with activations rounded to int8, token by token) or int4.

    Raises:
        InputError: no checkpoint, none that can be quantised, no text to calibrate on, a package that is missing.
        VerificationError: a fresh process reads other weights, or the model predicts something else.
    """
    device = device_called(config.device)
    folder, output = Path(config.model).expanduser(), Path(config.output)
    check_output(output, overwrite=config.overwrite, model_folder=folder)
    kind = config.quantise or "int4"
    if kind not in MOST_KL:
        raise InputError(f"--quantise {kind} goes with another format: --format compressed-tensors takes int8 or int4.")
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {config.model}: no checkpoint there (config.json is missing).")
    if find_spec("compressed_tensors") is None:
        raise InputError("--format compressed-tensors needs a package: pip install 'secateur[quant]'.")
    values = values_in(folder)
    if values.get(LAYERS_KEY):
        raise InputError(
            f"--model {config.model}: its layers differ, and engines read quantised checkpoints of alike layers alone: "
            "export it with --format padded first, or --format gguf, which quantises layers that differ."
        )
    if values.get("quantization_config"):
        raise InputError(f"--model {config.model} is quantised already: give the checkpoint that it was made of.")
    source = ModelSource(config.model, str(folder))
    tokenizer = load_tokenizer(source)
    segments, data = calibration_segments(config, tokenizer, HELD_OUT)
    held = max(1, min(HELD_OUT // SEQ_LEN, len(segments) // 4))
    dtype = checkpoint_dtype(load_config(source))
    model = load_model(source, dtype="float32")
    nn.Module.to(model, device)
    measured = segments[-held:]
    before = _perplexity(model, measured)
    linears = quantised_linears_of(model)
    made = quantise_(model, linears, kind, segments[:-held], dtype)
    nn.Module.to(model, "cpu")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    after, size = _write(config, output, model, tokenizer, made, kind, measured)
    fallen = sorted({linear.weight.shape for name, linear in linears.items() if made[name].grid.bits == 8})
    note = ""
    if kind == "int4" and fallen:
        sizes = ", ".join(f"{rows} x {columns}" for rows, columns in fallen)
        note = (
            f" Linears of {sizes} are in 8 bits, as {ROWS} does not divide their inputs, or outputs that engines take "
            f"together: prune with --round-to {ROWS} (or {GROUPS[0]}) for 4 everywhere."
        )
    return (
        f"{output}: {kind}, {human_bytes(size)}; read back in a fresh process by transformers: perplexity "
        f"{before:.2f} -> {after:.2f} on {measured.numel():,} tokens of {data} that were not calibrated on "
        f"({(len(segments) - held) * SEQ_LEN:,} were).{note}\n\n"
        f"    vllm serve {output}"
    )


def quantised_linears_of(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every linear but the head."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear and m is not head}


def grids_of(kind: str, linears: Mapping[str, nn.Linear]) -> dict[str, Grid]:
    """The grid of each linear: in 4 bits a group must divide its inputs, and `ROWS` its outputs; 8 bits need neither.

    Linears of one module and one width are alike: engines fuse what reads the same (queries, keys and values; gate and
    up), and give it one kernel.
    """
    fused: dict[tuple[str, int], list[int]] = {}
    for name, linear in linears.items():
        fused.setdefault((name.rpartition(".")[0], linear.in_features), []).append(linear.out_features)
    grids = {}
    for name, linear in linears.items():
        group = next((size for size in GROUPS if linear.in_features % size == 0), None)
        rows = fused[name.rpartition(".")[0], linear.in_features]
        small = kind == "int4" and group and not any(size % ROWS for size in rows)
        grids[name] = Grid(4, group) if small else Grid(8, None)
    return grids


def quantise_(
    model: PreTrainedModel, linears: dict[str, nn.Linear], kind: str, segments: Tensor, dtype: torch.dtype
) -> dict[str, Quantised]:
    """Put each linear's weight on its grid, those of 4 bits by GPTQ; in order, so later ones see what earlier ones do.

    Args:
        segments: (texts, tokens) to calibrate on.
    """
    made: dict[str, Quantised] = {}
    grids, told = grids_of(kind, linears), Progress(0).counting(f"quantising to {kind}", "linears")
    told(0, len(linears))
    for portion in in_portions(linears, MOST_BYTES):
        few = {name: linear for name, linear in portion.items() if grids[name].bits == 4}
        moments = Moments(few)
        if few:  # 8 bits are near enough without
            narrow = autocast(model.device.type, compute_dtype("auto", model.device))
            with moments.watching(), torch.inference_mode(), narrow:
                for some in segments.to(model.device).split(4):
                    model(input_ids=some, use_cache=False, logits_to_keep=1)
        for name, linear in portion.items():
            grid = grids[name]
            second = moments.get(name)
            made[name] = Quantised(
                grid, *quantise(linear.weight.cpu(), None if second is None else second.cpu(), grid, dtype)
            )
            linear.weight.data = made[name].weight.to(linear.weight)
            told(len(made), len(linears))
    return made


def tensors_of(model: PreTrainedModel, made: dict[str, Quantised]) -> dict[str, Tensor]:
    """What the file holds: packed numbers and steps in the place of a linear's weight."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, linear in made.items():
        del state[f"{name}.weight"]
        state[f"{name}.weight_scale"] = linear.scales
        if linear.grid.bits == 8:
            state[f"{name}.weight"] = linear.codes
        else:
            state[f"{name}.weight_packed"] = pack_to_int32(linear.codes, linear.grid.bits)
            state[f"{name}.weight_shape"] = torch.tensor(linear.codes.shape)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def scheme_of(model: PreTrainedModel, made: dict[str, Quantised]) -> dict[str, Any]:
    """`quantization_config` of config.json: a group of linears for each grid, by name where there are several."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    by_grid: dict[Grid, list[str]] = {}
    for name, linear in made.items():
        by_grid.setdefault(linear.grid, []).append(name)
    groups = {}
    for number, (grid, names) in enumerate(by_grid.items()):
        strategy = {"strategy": "group", "group_size": grid.group} if grid.group else {"strategy": "channel"}
        scheme: dict[str, Any] = {
            "targets": ["Linear"] if len(by_grid) == 1 else names,
            "weights": QuantizationArgs(num_bits=grid.bits, type="int", symmetric=True, **strategy),
            "format": "pack-quantized" if grid.bits == 4 else "int-quantized",
        }
        if grid.bits == 8:
            scheme["input_activations"] = QuantizationArgs(
                num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True
            )
        groups[f"group_{number}"] = QuantizationScheme(**scheme)
    formats = {scheme.format for scheme in groups.values()}
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    found = QuantizationConfig(
        config_groups=groups, format=formats.pop() if len(formats) == 1 else "mixed-precision", ignore=head,
        quantization_status="compressed",
    )  # fmt: skip
    return cast(dict[str, Any], found.model_dump(mode="json"))


def _write(
    config: ExportConfig, output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    made: dict[str, Quantised], kind: str, measured: Tensor,
) -> tuple[float, int]:  # fmt: skip
    """Write, read back, put in place; the perplexity of what was read back, and its bytes."""
    tensors = tensors_of(model, made)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with replaced_whole(output, size) as folder:
        save_model(model, folder, None)
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values["quantization_config"] = scheme_of(model, made)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(tokenizer, folder)
        with scratch() as work:
            ids = default_probe(tokenizer, model.config.vocab_size)
            probe = {"ids": ids, "logits": logits_of(model, ids).contiguous(), "text": measured.contiguous()}
            save_file(probe, work / "probe.safetensors")
            save_file({name: linear.weight for name, linear in made.items()}, work / "weights.safetensors")
            task = {
                "folder": str(folder.absolute()), "probe": str(work / "probe.safetensors"),
                "weights": str(work / "weights.safetensors"), "threads": torch.get_num_threads(),
            }  # fmt: skip
            found = fresh_process(CHILD, task, folder)
        if found["wrong"]:
            raise VerificationError(f"{output}: a fresh process reads other weights of {found['wrong'][0]}.")
        if not found["kl"] <= MOST_KL[kind]:
            raise VerificationError(
                f"{output}: read back, it predicts {found['kl']:.3g} nats off the model before it was quantised "
                f"(allowed: {MOST_KL[kind]:g}): choose --quantise int8, or calibrate on other --data."
            )
        _card(Path(config.model), folder, output, kind)
    return float(found["perplexity"]), size


def _card(base: Path, folder: Path, output: Path, kind: str) -> None:
    card = base / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else f"# {output.name}\n"
    text = text.replace(f"from_pretrained({json.dumps(base.name)}", f"from_pretrained({json.dumps(output.name)}")
    what = "linears in 8 bits, activations too" if kind == "int8" else "linears in 4 bits (GPTQ)"
    text += (
        f"\nThis is the `{kind}` form of it (compressed-tensors): {what}; the figures above are of the weights before. "
        "transformers with the package compressed-tensors, and vLLM, read it.\n"
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _perplexity(model: nn.Module, segments: Tensor) -> float:
    ids, dtype = segments.reshape(-1), compute_dtype("auto", next(model.parameters()).device)
    return perplexity(model, ids, seq_len=segments.shape[1], dtype=dtype, told=Progress(0).measuring()).perplexity
