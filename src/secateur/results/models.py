"""The checkpoint of a result, loaded: layered ones and adapters too, without code of anybody's being run."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.loading import load_model
from ..models.source import resolve_model
from ..models.tokenizers import load_tokenizer


def checkpoint_of(name: str, *, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """A model by folder or name, in evaluation mode on the CPU."""
    return load_model(resolve_model(name), dtype=dtype, trust_remote_code=trust_remote_code)


def adapter_of(base: str, folder: Path, *, dtype: str, trust_remote_code: bool) -> PeftModel:
    """A base model with an adapter on it, not merged."""
    model = checkpoint_of(base, dtype=dtype, trust_remote_code=trust_remote_code)
    return PeftModel.from_pretrained(model, str(folder)).eval()


def tokenizer_of(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model."""
    return load_tokenizer(resolve_model(name), trust_remote_code=trust_remote_code)
