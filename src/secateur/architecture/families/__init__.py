"""Where each architecture keeps its layers, projections and sizes: data only.

The only place in secateur that knows module names. A family says how a layout is pruned; which model
types share it is one line in `FAMILIES`.
"""

from ...system.errors import InputError
from . import (  # noqa: F401 (each registers its families)
    classics,
    dense,
    encoder_decoders,
    hybrids,
    latent,
    mixtures,
    own_attention,
    varied,
)
from .family import FAMILIES, Beside, Family, Stacking
from .refused import REFUSED, refusal

__all__ = [
    "BUILT_IN", "FAMILIES", "REFUSED", "Beside", "Family", "Stacking", "check_not_refused", "family_of", "refusal",
]  # fmt: skip

BUILT_IN = dict(FAMILIES.items())
"""The model types whose layouts are tested here, with these; what users register in their place is not."""


def family_of(model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model type, or the one that the user names.

    Raises:
        InputError: the model type is not known (with the closest known one), or refused (with the reason).
    """
    if isinstance(override, Family):
        return override
    if override is not None:
        return FAMILIES[override]
    if not model_type:
        raise InputError("the model's config.json has no model_type: add it, or pass --family.")
    check_not_refused(model_type)
    return FAMILIES[model_type]


def check_not_refused(model_type: str) -> None:
    """Whether a model type is not one of those that cannot be pruned.

    Raises:
        InputError: it is; says why.
    """
    if model_type in REFUSED and model_type not in FAMILIES:
        raise InputError(refusal(model_type))
