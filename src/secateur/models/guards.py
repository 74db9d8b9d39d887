"""What transformers, the hub and the operating system raise when a model is read, as one message of ours."""

import logging
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..architecture.config_faults import config_error, fault_in_words, values_in
from ..architecture.families import FAMILIES
from ..data.embedded import EMBEDDED_MODEL
from ..system.errors import InputError, out_of_memory
from ..system.launcher import rank
from ..system.quiet import quiet_transformers
from ..system.registry import did_you_mean
from ..system.terminal.streams import safe
from .checks import ORIGINAL, gated
from .source import ModelSource

log = logging.getLogger("secateur")

HUB_TIMEOUT_S = 10
CONVERSION = re.compile(
    r"^(\S+)\s*\|\s*(?:\x1b\[[\d;]*m)?CONVERSION[^\n]*\n(?:[^\n]*\n)*?[^\n]*?(\w+Error: [^\n]*)", re.MULTILINE
)
"""Of transformers' report on a load: a weight that is made of several tensors, and why it could not be."""

PIP = re.compile(r"pip install (?:-U |--upgrade )?['\"]?([\w.\[\],<>=~-]*\w\]?)")
NO_MODULE = re.compile(r"No module named '(?!transformers_modules)(\w+)")
PACKAGES = {"gptq": "optimum' 'gptqmodel", "quark": "amd-quark"}
"""Quantisation -> what to install, where transformers' message does not say all of it."""
DEVICES = ("GPU", "CUDA", "XPU", "mps")


def check_hub(source: ModelSource) -> None:
    """One short question to the hub: transformers' own retries keep a user without network for a minute."""
    if source.is_local:
        return
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(source.path, "config.json"), str):
        return
    try:
        HfApi().model_info(source.path, timeout=HUB_TIMEOUT_S)
    except GatedRepoError:
        raise gated(source.name, source.path) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"model {source.name!r} is not on the hub, or private: check the spelling, or log in with `hf auth login`."
        ) from None
    except OfflineModeIsEnabled:
        raise InputError(
            f"model {source.name!r} is not in the hub cache and HF_HUB_OFFLINE is set: "
            "unset it, or give a local folder."
        ) from None
    except Exception as error:  # the HTTP client's classes differ between versions
        raise InputError(
            f"model {source.name!r} is no local folder, and the hub cannot be reached "
            f"({one_line(error)}): check the name and the network, or give a local folder or {EMBEDDED_MODEL}."
        ) from None


def guarded(
    source: ModelSource,
    load: Callable[..., Any],
    trust_remote_code: bool,
    options: dict[str, Any],
    what: str = "model",
) -> Any:
    """Call a `from_pretrained` quietly; what it raises becomes one `InputError` that keeps its first line."""
    options = {key: value for key, value in options.items() if value is not None}
    told: list[str] = []
    try:
        with quiet_transformers(gguf=source.gguf_file is not None) as told:
            return load(source.path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers raises many classes, some of its own
        if out_of_memory(error):
            raise
        text, place = str(error), f"{what} {source.name!r}"
        if not source.is_local and ("gated repo" in text or "403 Client Error" in text):
            raise gated(source.name, source.path) from None
        if "above report" in text and (unmade := CONVERSION.search("\n".join(told))):
            raise InputError(
                f"{place}: {unmade[1]} cannot be made of the checkpoint's tensors ({unmade[2]}): one is missing, or of "
                "another shape: copy or download the checkpoint again."
            ) from None
        if "trust_remote_code" in text:
            raise InputError(
                f"{place} ships Python code of its own: read it, and pass --trust-remote-code if you trust it."
            ) from None
        values = config_values(source) if what == "model" and not source.gguf_file else {}
        if lacking := lacking_here(error, values):
            raise InputError(f"{place}{lacking}") from error
        if "not a valid JSON" in text:
            raise InputError(f"{source.path}/config.json is not valid JSON: copy or download it again.") from None
        if "model_type" in text or "model type" in text:
            named = re.search(r"model type `([^`]+)`", text)
            hint = did_you_mean(named[1], FAMILIES) if named else ""
            raise InputError(
                f"{place}: transformers does not know its architecture ({one_line(error)}). {hint}"
                "Check model_type in config.json, or update transformers. See `secateur families`; "
                "docs/add-a-family.md says how to add to it."
            ) from None
        if trust_remote_code and values.get("auto_map") and "quantization_config" not in values:
            raise InputError(
                f"{place}: its own code, or what auto_map in config.json says of it, ends in an error "
                f"({type(error).__name__}: {one_line(error)}): mend it, or get it again."
            ) from error
        if values:
            raise config_error(source.name, fault_in_words(error, values)) from error
        raise InputError(
            f"{place} cannot be loaded ({type(error).__name__}: {one_line(error)}): "
            "check its files, or download it again."
        ) from error


def lacking_here(error: Exception, values: Mapping[str, Any]) -> str:
    """The end of a message about a package, or a device, that reading a model needs; empty where it is not that.

    Args:
        values: config.json.
    """
    text, quantised = one_line(error), values.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    found = PIP.search(text) or NO_MODULE.search(text)
    if found is None and not (method and isinstance(error, ImportError)):
        if method and any(word in text for word in DEVICES):
            return f": its weights are quantised ({method}), and this machine cannot read them ({text}). {ORIGINAL}"
        return ""
    package = PACKAGES.get(str(method)) or (found[1] if found else str(method))
    if method:
        return (
            f": its weights are quantised ({method}), and reading them needs a package that is not installed, or not "
            f"in a version that will do: pip install '{package}'. Or give the original checkpoint."
        )
    return f" needs a package that is not installed: pip install '{package}'."


def config_values(source: ModelSource) -> dict[str, Any]:
    """What config.json says, of a folder or of the hub's cache; nothing where it is not there or no mapping."""
    from huggingface_hub import try_to_load_from_cache

    if source.is_local:
        return values_in(source.path)
    found = try_to_load_from_cache(source.path, "config.json")
    return values_in(Path(found).parent) if isinstance(found, str) else {}


@cache
def say_once(warning: str) -> None:
    """Warn once, in the first process alone: a command may read a model more than once."""
    if rank() == 0:
        log.warning("%s", safe(warning))


def one_line(error: Exception) -> str:
    """An error's first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
