"""From a trained network to the bundle that the runtime reads."""

from nucfast_export.export import ExportError, ExportReport, export_bundle

__all__ = ["ExportError", "ExportReport", "export_bundle"]
