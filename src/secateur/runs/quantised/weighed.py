"""`secateur export --format gguf`, with what an importance matrix needs: the model run on the calibration's text."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...checkpoint.serving.agreement import GgufReport
from ...checkpoint.serving.gguf_file import to_gguf as written
from ...config.prune import ExportConfig
from ...models.devices import autocast, compute_dtype
from ...models.source import resolve_model
from ...models.tokenizers import load_tokenizer
from ...sparsity.moments import Moments
from ...system.machine.devices import device_called
from ...system.progress import phase
from .calibration import calibration_segments


def to_gguf(config: ExportConfig) -> GgufReport:
    """As `checkpoint.serving.gguf_file.to_gguf`; with `--imatrix` its quantiser is told what columns are worth.

    Raises:
        InputError: likewise, and a text that is missing or too short.
        VerificationError: likewise.
    """
    if not config.imatrix:
        return written(config)
    device = device_called(config.device)
    segments, _ = calibration_segments(config, load_tokenizer(resolve_model(config.model)))
    return written(config, lambda model: mean_squares(model, segments, device))


def mean_squares(model: PreTrainedModel, segments: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Linear's name -> (columns,) mean over tokens of its squared inputs.

    Args:
        segments: (texts, tokens)
    """
    nn.Module.to(model, device)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    squares = Moments(linears, squares=True)
    narrow = autocast(device.type, compute_dtype("auto", device))
    with phase("the importance matrix"), squares.watching(), torch.inference_mode(), narrow:
        for some in segments.to(device).split(4):
            model(input_ids=some, use_cache=False, logits_to_keep=1)
    nn.Module.to(model, "cpu")
    return {name: squares[name].cpu() / segments.numel() for name in linears if name in squares}
