"""Model repositories: rendering plans into them and checking what lies there."""

from orchestrator.repository.check import check, check_plans
from orchestrator.repository.checked import render_checked
from orchestrator.repository.files import Rendering
from orchestrator.repository.layout import (
    ensemble_from_cascade,
    render,
    render_ensemble,
    render_member,
)
from orchestrator.repository.on_disk import model_folders, plans_in
from orchestrator.repository.output import render_output
from orchestrator.repository.pbtxt import config_from_path, text_from_config
from orchestrator.repository.report import CheckReport, Fault

__all__ = [
    "CheckReport",
    "Fault",
    "Rendering",
    "check",
    "check_plans",
    "config_from_path",
    "ensemble_from_cascade",
    "model_folders",
    "plans_in",
    "render",
    "render_checked",
    "render_ensemble",
    "render_member",
    "render_output",
    "text_from_config",
]
