"""Checking a repository: everything that is wrong with it, in one run."""

from orchestrator.repository.check.models import Fault
from orchestrator.repository.check.run import CheckReport, check, check_plans

__all__ = ["CheckReport", "Fault", "check", "check_plans"]
