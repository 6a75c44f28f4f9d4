"""One self-contained HTML page about a run."""

from mmssl.report.build import write_report

__all__ = ["write_report"]
