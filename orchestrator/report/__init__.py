"""The report of a plan: its numbers, pictures, and one page that needs nothing else."""

from orchestrator.report.write import write_report

__all__ = ["write_report"]
