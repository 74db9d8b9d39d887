"""Writing the result in each format; done only when a fresh process has read the same back."""

from .export import ExportReport, export_checkpoint
from .streaming import export_streamed

__all__ = ["ExportReport", "export_checkpoint", "export_streamed"]
