"""`secateur report`: a run's records as one self-contained page, or several runs side by side.

`runs` reads the records, `facts`, `units` and `quality` pick what a page shows from them, `plots` and `curves` draw,
`page` fills the template. A record that is not there leaves its section out. What draws is imported on first use:
records are read without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import make_report, write_report

__all__ = ["make_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".page", __name__), name)
