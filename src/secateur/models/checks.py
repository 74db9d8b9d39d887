"""What a model must be for our commands, and what it is beyond its name; reads configurations and headers only."""

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType

from transformers import MODEL_FOR_MASKED_LM_MAPPING, GenerationConfig, PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..architecture.config_faults import SIZES, SPECIAL, fault_in_words, values_in
from ..architecture.stock import has_class, said_once
from ..system.errors import InputError
from ..system.quiet import quiet_transformers
from ..system.reading import damaged, is_pointer, parse_json, read_text
from .source import ModelSource

WHOLE_NUMBERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
TOGETHER = "copy or download config.json and the weights again, together."
KINDS: dict[str, tuple[type | UnionType, str]] = {
    "model_type": (str, "a name"),
    "dtype": (str | dict, "a name, such as bfloat16"),
    "torch_dtype": (str | dict, "a name, such as bfloat16"),
    "quantization_config": (dict, "an object"),
    "text_config": (dict, "an object"),
}
"""Keys of config.json of which transformers takes the kind for granted."""
MTP = "layers for multi-token prediction"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of weights that need no scales."""
SCALES = re.compile(
    r"(weight_scale(_inv|_2)?|weight_scales|_scale_inv|weight_packed|qweight|qzeros|\.scales|\.SCB|\.absmax|"
    r"\.weight_zero_point|\.input_scale|pre_quant_scale|smooth_scale|\.q_weight|\.q_scale|\.trellis)$"
)
"""What stands beside quantised weights, by the names that modelopt, GPTQ, AWQ, EXL2, EXL3 and others use."""
BUFFERS = re.compile(r"(^|[._])(bias|masked_bias|mask|position_ids|token_type_ids)$")
"""Whole numbers that are no weights."""
HARMLESS = {
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(^|[._])position_ids)$": "positions, which are computed",
    r"(^|\.)(attn|attention|self_attn|self_attention|crossattention)\.(bias|masked_bias)$": "causal masks",
    r"(^|[._])mtp([._]|$)": MTP,
    r"(^|[._])(vision|visual|image|img|audio|speech|video)([._]|$)": "images or sound",
    r"(^|\.)(multi_modal_projector|mm_projector|connector)\.": "images or sound",
    r"^(v_head|score|classifier|qa_outputs|cls|reward_head|medusa_head)\.": "a head for another task",
    r"\.([qkv]_scale|kv_scale|[kv]_proj\.output_scale|[kv]_cache\.scale)$": "scales of an engine's cache",
}
"""Name of a tensor -> why a causal language model is the same without it."""
SIDECARS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Files in which other tools name a quantisation."""
ORIGINAL = "Give the original checkpoint, in float32, bfloat16 or float16."
HEADER_BYTES = 1 << 20
"""Of a config.json, or of a GGUF file, whose names and shapes come first."""


def check_kind(name: str, config: PretrainedConfig, *, encoder_decoders: bool = False) -> None:
    """Refuse what does not predict the next token: transformers would load an encoder as if it did.

    Args:
        encoder_decoders: whether what asks can take one.
    Raises:
        InputError: an encoder, or an encoder-decoder.
    """
    if config.is_encoder_decoder:
        if not encoder_decoders:
            raise InputError(
                f"model {name!r}: {config.model_type} is an encoder-decoder, and this command works on causal language "
                "models. prune, plan, eval, bench and sample take both."
            )
        if not has_class(config):
            raise InputError(
                f"model {name!r}: {config.model_type} is an encoder-decoder of which transformers has no text-to-text "
                "class (AutoModelForSeq2SeqLM): give one such as T5."
            )
        return
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise InputError(
            f"model {name!r}: {config.model_type} is an encoder, and secateur's commands work on causal language "
            "models: give a decoder-only one, such as a Llama."
        )


def check_json_files(source: ModelSource) -> None:
    """A local model's configurations are JSON objects, and the numbers of tokens in them are numbers.

    Raises:
        InputError: names the file and what is wrong in it.
    """
    if not source.is_local or source.gguf_file:
        return
    for name in ("config.json", "generation_config.json"):
        path = Path(source.path) / name
        if not path.exists():
            continue
        text = read_text(path, str(path))
        if path.read_bytes()[:3] == BOM_UTF8:
            raise InputError(f"{path} begins with a byte-order mark, which transformers cannot read: save it without.")
        if is_pointer(path):
            raise damaged(path, "")
        values = parse_json(text, str(path), "copy or download it again.")
        if not isinstance(values, dict):
            raise InputError(f"{path} is no JSON object but {text.strip()[:40]}: copy or download it again.")
        for key in SPECIAL:
            value = values.get(key)
            tokens = value if isinstance(value, list) else [value]
            if not all(token is None or (isinstance(token, int) and not isinstance(token, bool)) for token in tokens):
                raise InputError(f"{path}: {key} is {value!r}, and a token is given by its number: correct it.")
        for key, (kind, words) in KINDS.items() if name == "config.json" else ():
            if values.get(key) is not None and not isinstance(values[key], kind):
                raise InputError(f"{path}: {key} is {json.dumps(values[key])[:80]}, and must be {words}: correct it.")
        code = values.get("auto_map")
        if isinstance(code, dict) and not all(isinstance(place, str | list | None) for place in code.values()):
            raise InputError(f"{path}: auto_map is {json.dumps(code)[:80]}, and must name classes: correct it.")
    if (Path(source.path) / "generation_config.json").is_file():
        try:
            with quiet_transformers():
                GenerationConfig.from_pretrained(source.path)
        except Exception as error:  # it checks what it reads, with errors of several classes
            reason = fault_in_words(error, {})
            raise InputError(f"{source.path}/generation_config.json cannot be used: {reason}. Correct it.") from None


def unfit_shapes(
    name: str,
    config: PretrainedConfig,
    count: int,
    key: str,
    found: Sequence[int],
    expected: Sequence[int],
    hint: str = TOGETHER,
    says: str = "config.json",
) -> InputError:
    """The error for weights of another shape than config.json says.

    Args:
        count: how many there are; `key` is one of them.
    """
    sizes = {size for size, other in zip(expected, found, strict=False) if size != other}
    text = config.get_text_config(decoder=True)
    keys = [key for key in SIZES if said_once(text, key) in sizes]
    said = f" ({', '.join(f'{text.attribute_map.get(key, key)} {getattr(text, key)}' for key in keys)})" if keys else ""
    return InputError(
        f"model {name!r}: {count} weights do not have the shape that {says} says{said}, such as {key}: "
        f"{tuple(found)} in the file, {tuple(expected)} in the model; {hint}"
    )


def why_harmless(name: str, config: PretrainedConfig) -> str | None:
    """Why a tensor of the checkpoint may be left out, None where it may not."""
    numbered = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    text = config.get_text_config(decoder=True)
    further = getattr(text, "num_nextn_predict_layers", None) or 0
    if numbered and further and 0 <= int(numbered[1]) - text.num_hidden_layers < further:
        return MTP
    return next((reason for pattern, reason in HARMLESS.items() if re.search(pattern, name)), None)


def check_method(folder: Path) -> bool:
    """Whether config.json names a quantisation that transformers undoes or computes with.

    Raises:
        InputError: it names one that transformers does not know, or none at all, and so would pass over.
    """
    config = values_in(folder)
    text = config.get("text_config")
    given = config.get("quantization_config")
    if given is None and isinstance(text, dict):
        given = text.get("quantization_config")
    if given is None or not isinstance(given, dict):  # another kind, `check_json_files` refuses
        return False
    if given.get("load_in_8bit") or given.get("load_in_4bit"):
        return True
    method = given.get("quant_method")
    if method in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return True
    named = "no quant_method" if method is None else f"the quant_method {json.dumps(method)[:60]}"
    raise InputError(
        f"{folder}/config.json: its quantization_config has {named}, which transformers does not know: it would take "
        f"the quantised numbers for the weights. {ORIGINAL} Or, if the weights are plain numbers, take "
        "quantization_config out."
    )


def check_kinds(path: Path, kinds: Mapping[str, str], handled: bool) -> None:
    """Weights are floating-point numbers of two bytes or more, unless transformers knows how they are packed.

    Args:
        kinds: tensor name -> its kind as safetensors calls it, of the file at `path`.
        handled: `check_method`.
    Raises:
        InputError: some are not, or scales lie beside them; buffers (positions, masks) may be whole numbers.
    """
    if handled:
        return
    whole = [name for name, kind in kinds.items() if kind in WHOLE_NUMBERS and _is_weight(name, kind)]
    small = [name for name, kind in kinds.items() if kind not in WHOLE_NUMBERS and kind not in FLOATS]
    scales = [name for name in kinds if SCALES.search(name)]
    if not (whole or small or scales):
        return
    named = "config.json names no quantization"
    if beside := [name for name in SIDECARS if (path.parent / name).is_file()]:
        named = f"only {beside[0]} names the quantization, which transformers does not read"
    if whole:
        what = f"{whole[0]} and {len(whole) - 1} other weights are whole numbers ({kinds[whole[0]]})"
    elif small:
        what = f"{small[0]} and {len(small) - 1} other weights are numbers of one byte or less ({kinds[small[0]]})"
        if kinds[small[0]].startswith("C"):
            what = f"{small[0]} and {len(small) - 1} other weights are complex numbers ({kinds[small[0]]})"
    else:
        what = f"{scales[0]} and {len(scales) - 1} other scales of quantised weights are in it"
    raise InputError(f"{path}: {what}, and {named}: the weights would be read without their scales. {ORIGINAL}")


def check_scales(folder: Path, kinds: Mapping[str, str]) -> None:
    """Weights of one byte have a scale of their own: where there is none, transformers takes the codes for values.

    Args:
        kinds: of all of the checkpoint's tensors.
    Raises:
        InputError: names the first that has none.
    """
    stems = {
        name.removesuffix(".weight") for name, kind in kinds.items() if kind.startswith("F8_") and "scale" not in name
    }
    scales = [name for name in kinds if "scale" in name]
    scaled = {stem for scale in scales for stem in (scale.rpartition(".")[0], scale.rpartition("_scale")[0])}
    scaled |= {stem.removesuffix(".weight") for stem in scaled}
    if bare := sorted(stems - scaled):
        raise InputError(
            f"{folder}: {bare[0]} and {len(bare) - 1} other weights are numbers of one byte without a scale: copy or "
            f"download the checkpoint again. {ORIGINAL}"
        )


def _is_weight(name: str, kind: str) -> bool:
    """Whether a tensor of whole numbers stands for weights; positions and masks are the model's own."""
    return name.endswith(".weight") or (kind in ("I8", "U8") and not BUFFERS.search(name))


def hash_of_headers(folder: Path, files: Sequence[str]) -> str:
    """SHA-256 of config.json, of the weights' names, kinds, shapes and places, and of all sizes."""
    digest = hashlib.sha256()
    for name in files:
        path = folder / name
        digest.update(f"{name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            weights = name.endswith(".safetensors")
            digest.update(file.read(int.from_bytes(file.read(8), "little") if weights else HEADER_BYTES))
    return digest.hexdigest()


def gated(name: str, repository: str) -> InputError:
    """The error for a hub model whose terms must be accepted first."""
    return InputError(
        f"model {name!r} is gated: accept its terms on https://huggingface.co/{repository}, log in with "
        "`hf auth login`, and try again; or give a local folder."
    )
