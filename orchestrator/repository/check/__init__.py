"""Checking a repository: everything that is wrong with it, in one run."""

from orchestrator.repository.check.report import CheckReport, Fault
from orchestrator.repository.check.run import check, check_plans

__all__ = ["CheckReport", "Fault", "check", "check_plans"]
