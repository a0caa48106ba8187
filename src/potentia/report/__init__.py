"""The report: one HTML page about an ensemble, whole in itself."""

from potentia.report._write import write_report

__all__ = ["write_report"]
