"""`secateur report`: a run's records as one self-contained page, or several runs side by side.

`runs` reads the records, `facts` picks what a page shows from them, `plots` draws, `page` fills the template.
A record that is not there leaves its section out.
"""

from .page import make_report, write_report

__all__ = ["make_report", "write_report"]
