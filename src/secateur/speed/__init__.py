"""What heads and widths cost in time: measured here, read from a file, and looked up for any size."""

from .costs import Costs
from .table import CostTable, read_table

__all__ = ["CostTable", "Costs", "read_table"]
