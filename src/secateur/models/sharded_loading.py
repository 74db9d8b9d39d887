"""A checkpoint read straight into FSDP2's shards: no process ever holds more of it than its part and one tensor."""

import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from ..architecture.building import built
from ..architecture.nested import forget_whole_
from ..parallel.sharding import assign_, is_sharded, spread_
from ..system.errors import InputError
from ..system.voice import speaks_python
from .devices import default_device
from .files import check_checkpoint, tensor_places
from .loading import load_config, refuse_unfit
from .original import original_tensors
from .source import ModelSource, resolve_model
from .stored import checkpoint_dtype


@speaks_python()
def load_sharded(name: str, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model, frozen, its linears and embeddings spread over the processes as by `shard_base`.

    Call it in every process, in place of `from_pretrained` and `shard_base`, and add LoRA afterwards (seeded alike). In
    one process it is a model like any other. A checkpoint with other names than the model's is loaded whole first.

    Args:
        name: a folder with safetensors, which all processes read.
        dtype: of the weights; by default the checkpoint's own.
    Raises:
        InputError: no such folder; as `shard_base`.
    """
    source = resolve_model(name)
    if not source.is_local or source.gguf_file:
        raise InputError(f"model {name!r}: weights are sharded from a folder of safetensors files: give one.")
    check_checkpoint(source)
    config = load_config(source, trust_remote_code=trust_remote_code)
    dtype, device = dtype or checkpoint_dtype(config), default_device()
    with init_empty_weights(include_buffers=False):
        model = built(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    model.config.use_cache = False
    spread_(model)
    names = [path for path, _ in model.named_parameters()]  # tied weights once
    _refuse_unfit(source, model, names, trust_remote_code)
    with original_tensors(source, names, trust_remote_code) as read:
        for path in names:
            owner, _, leaf = path.rpartition(".")
            module = model.get_submodule(owner)
            if not is_sharded(module):
                value = read(path).to(device, dtype)
                setattr(module, leaf, nn.Parameter(value, requires_grad=False))
                continue
            if getattr(module, leaf).is_meta:
                _make_room(module, device)
            assign_(getattr(module, leaf), read(path))
    model.tie_weights()
    forget_whole_(model)
    for buffer_of in model.modules():
        for leaf, buffer in buffer_of.named_buffers(recurse=False):
            buffer_of._buffers[leaf] = buffer.to(device)
    return model.eval()


def _refuse_unfit(source: ModelSource, model: PreTrainedModel, names: list[str], trusted: bool) -> None:
    """As `refuse_unfit`, of a checkpoint with the model's own names; any other is loaded whole, and looked at there."""
    places = tensor_places(Path(source.path)).keys()
    if not set(names) <= places:
        return
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    others = [name for name in places - model.state_dict().keys() if not any(one.search(name) for one in ignored)]
    info = {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": others}
    refuse_unfit(source, model, info, trusted=trusted)


def _make_room(module: nn.Module, device: torch.device) -> None:
    """Memory for this process's rows of a module's parameters; its buffers keep their values."""
    buffers = dict(module.named_buffers(recurse=False))
    module.to_empty(device=device, recurse=False)
    module._buffers.update(buffers)
