"""Text in, tokens out: documents of every accepted form, evaluation texts by name, the text that needs no hub."""

from .documents import read_documents
from .embedded import embedded_model_dir
from .forms.document import Document
from .presets import PRESETS, preset_text
from .tokens import Blocks, evaluation_tokens, training_blocks

__all__ = [
    "PRESETS",
    "Blocks",
    "Document",
    "embedded_model_dir",
    "evaluation_tokens",
    "preset_text",
    "read_documents",
    "training_blocks",
]
