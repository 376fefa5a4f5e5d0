"""One Triton repository with a scenario's members and every route's model."""

import dataclasses
import shutil
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.onefile.writing import write_onefile
from orchestrator.pbtxt import CONFIG, config_from_path, text_from_config
from orchestrator.repository.configs import cascade_config
from orchestrator.repository.files import copy_model, new_folder, write_all
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec
from orchestrator.spec.manifest import MANIFEST
from perf.routes.baselines.clients import asyncio_client, sync_client
from perf.routes.baselines.deciding import plan_from_parameters
from perf.routes.scenario import BenchScenario
from perf.routes.spec import (
    CONCATENATE,
    IN_PROCESS,
    LARGEST,
    LARGEST_INSTANCES,
    PLAIN_ONLY,
    TUTORIAL,
    BenchRepository,
    BenchRoute,
    routes_of,
)

BASELINES = Path(__file__).parent / "baselines"
# Class in baselines/models.py -> names of the routes rendered from it.
_FORMS = {"PassThrough": ("pass_through",), "Tutorial": tuple(TUTORIAL), "Concatenate": tuple(CONCATENATE)}


def render_scenario(made: BenchScenario, folder: Path) -> BenchRepository:
    """Writes everything into a folder, in the place of what was rendered there before.

    Raises:
        CommitteeError: the folder holds something else, or the disk refuses.
    """
    spec, scenario = made.spec, made.recipe.scenario
    routes = routes_of(scenario)
    plain = is_plain(spec)
    if not plain:
        routes = {name: route for name, route in routes.items() if name not in PLAIN_ONLY}
    with new_folder(folder) as building:
        for member in scenario.members:
            copy_model(made.repository / member, building / member)
        _render_largest(building, scenario.members[-1])
        # Standalone: what is measured is the runtime of this checkout, wherever the folder lies.
        for name, stages in (("committee", 0), (IN_PROCESS, 1)):
            render(dataclasses.replace(spec, name=name, in_process=stages), building, standalone=True)
        render_ensemble(ensemble_from_cascade(spec, "ensemble"), building)
        write_onefile(spec, building, name="onefile")
        if plain:
            _render_baselines(spec, routes, building)
    plan = plan_from_parameters(parameters_of(spec), input_name=spec.input.name) if plain else None
    return BenchRepository(
        folder=folder,
        scenario=scenario,
        routes=routes,
        input_name=spec.input.name,
        sync_client=None if plan is None else partial(sync_client, plan=plan, dtype=spec.input.dtype),
        asyncio_client=None if plan is None else partial(asyncio_client, plan=plan, dtype=spec.input.dtype),
        predicted_speedup=made.predicted_speedup(),
    )


def is_plain(spec: CascadeSpec) -> bool:
    """Whether a plan decides in the one way the baselines' code knows."""
    members = all(
        (member.temperature, member.weight, member.output_kind) == (1.0, 1.0, "logits")
        and member.input in (None, spec.input.name)
        and member.output == spec.members[0].output
        for member in spec.members
    )
    single = all(len(stage.members) == 1 and stage.low is None for stage in spec.stages)
    finite = all(stage.threshold is not None for stage in spec.stages[:-1])
    return members and single and finite and (spec.combine, spec.score) == ("mean_logit", "max_prob")


def parameters_of(spec: CascadeSpec) -> dict[str, str]:
    """A plain plan as a baseline's config.pbtxt carries it."""
    return {
        "members": ",".join(member.name for member in spec.members),
        # Nine digits give every float32 back exactly.
        "thresholds": ",".join(f"{stage.threshold:.9g}" for stage in spec.stages[:-1]),
        "costs": ",".join(f"{stage.cost!r}" for stage in spec.stages),
        "output": spec.members[0].output,
    }


def baseline_config(spec: CascadeSpec, route: BenchRoute) -> ModelConfig:
    """The cascade's own configuration, with the baseline's instances and the plan as parameters."""
    config = cascade_config(spec)
    config.name = route.name
    # Triton splits no batch, and unlike Committee these hand theirs to the members as it is.
    config.max_batch_size = min(member.max_batch_size for member in spec.members)
    config.instance_group[0].count = route.instances
    # Triton looks class names up for clients that ask for them; no load here does.
    for output in config.output:
        output.label_filename = ""
    for key, text in parameters_of(spec).items():
        config.parameters[key].string_value = text
    return config


def _render_largest(repository: Path, member: str) -> None:
    """The largest member once more, with an instance per core."""
    copy_model(repository / member, repository / LARGEST)
    # The manifest and the configurations per device name the original member.
    (repository / LARGEST / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(repository / LARGEST / "configs", ignore_errors=True)
    path = repository / LARGEST / CONFIG
    config = config_from_path(path)
    config.name = LARGEST
    config.instance_group[0].count = LARGEST_INSTANCES
    path.write_text(text_from_config(config, source=f"{member} with more instances"), encoding="utf-8")


def _render_baselines(spec: CascadeSpec, routes: dict[str, BenchRoute], repository: Path) -> None:
    models = (BASELINES / "models.py").read_text(encoding="utf-8")
    for form, names in _FORMS.items():
        for name in names:
            files: dict[str, bytes | str] = {
                "1/model.py": f"{models}\n\nTritonPythonModel = {form}\n",
                "1/deciding.py": (BASELINES / "deciding.py").read_bytes(),
                CONFIG: text_from_config(baseline_config(spec, routes[name]), source="perf/routes/baselines"),
            }
            write_all(repository / name, files)
