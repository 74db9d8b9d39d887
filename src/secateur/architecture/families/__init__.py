"""Where each architecture keeps its layers, projections and sizes: data only.

The only place in secateur that knows module names. A family says how a layout is pruned; which model
types share it is one line in `FAMILIES`.
"""

from ...system.errors import InputError
from . import dense, encoder_decoders, hybrids, latent, mixtures, varied  # noqa: F401 (each registers its families)
from .family import FAMILIES, Beside, Family, Stacking

__all__ = ["BUILT_IN", "FAMILIES", "Beside", "Family", "Stacking", "family_of"]

BUILT_IN = frozenset(FAMILIES)
"""The model types whose layouts are tested here; the others are registered by users."""


def family_of(model_type: str, override: str | Family | None = None) -> Family:
    """The layout of a model type, or the one that the user names.

    Raises:
        InputError: the model type is not known (with the closest known one).
    """
    if isinstance(override, Family):
        return override
    if override is not None:
        return FAMILIES[override]
    if not model_type:
        raise InputError("the model's config.json has no model_type: add it, or pass --family.")
    return FAMILIES[model_type]
