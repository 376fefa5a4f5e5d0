"""Rendering: from a plan to the folders that Triton serves.

Everything is worked out before the first byte is written. A member's own config is never overwritten, nor are a
person's settings in a rendered one, unless forced.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.graphs.combining import averaging_model, averaging_name
from orchestrator.pbtxt import CONFIG, config_from_text, is_marked, text_from_config, text_from_path
from orchestrator.probe import SCRIPT
from orchestrator.repository.configs import (
    AVERAGING_VERSION,
    LABELS,
    averaging_config,
    cascade_config,
    deriving_config,
    ensemble_config,
    label_text,
    member_config,
    tuned_text,
)
from orchestrator.repository.files import (
    RUNTIME,
    SHIM,
    Rendering,
    is_shim,
    may_replace,
    remove_others,
    runtime_files,
    write_all,
)
from orchestrator.repository.index import named_spec, plan_path, policy_of, require_members, served_version
from orchestrator.repository.members import (
    adopted_spec,
    facts_from_folder,
    facts_of_member,
    pinned_spec,
    require_known_input,
)
from orchestrator.spec import CascadeSpec, Stage, json_from_cascade, manifest_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path, is_deriving
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.triton import served_versions, versions_in


def render(
    spec: CascadeSpec,
    repository: Path | str,
    *,
    standalone: bool = False,
    version: int | None = None,
    force: bool = False,
) -> Rendering:
    """Writes a cascade into a repository that holds its members, with members' versions where the plan has none.

    It gets the class names that its members have now; see `named_spec`.

    Args:
        spec: the cascade.
        repository: holds its members.
        standalone: also put the runtime beside model.py, so that the folder works wherever numpy is installed.
        version: version folder to write; None means the served one, or 1.
        force: overwrite a config that was not rendered, or was edited since.

    Raises:
        RepositoryError: a member is missing, another model has the name, or the disk refuses.
    """
    repository = Path(repository)
    require_members(spec, repository)
    spec = pinned_spec(named_spec(_known_spec(spec, repository), repository), repository)
    folder = repository / spec.name
    _require_ours([folder], force=force)
    text = _config_text(folder, cascade_config(spec), force=force)
    inside = str(_version_to_write(folder, version, config_from_text(text, subject=str(folder / CONFIG))))
    runtime = runtime_files() if standalone else {}
    files: dict[str, bytes | str] = {f"{inside}/{RUNTIME}/{name}": data for name, data in runtime.items()}
    files |= _labels_file(spec)
    files[f"{inside}/{PLAN}"] = json_from_cascade(spec)
    files[f"{inside}/model.py"] = SHIM
    # Last, so that an interrupted rendering leaves no config, or an old one that `check` finds stale.
    files[CONFIG] = text
    done = _render_members(spec, repository) + write_all(folder, files)
    if standalone:
        done += write_all(repository, {SCRIPT: runtime["probe.py"]})
    beside = folder / inside / RUNTIME
    if (beside / "bls").is_dir():
        # model.py takes the nearest runtime, so an old copy would be used instead of the checkout's.
        remove_others(beside, runtime)
    return done


def render_ensemble(spec: CascadeSpec, repository: Path, *, force: bool = False) -> Rendering:
    """Writes a single-stage plan as Triton's own ensemble, with a small ONNX model as its last step.

    `force` overwrites configs that were not rendered, or were edited since.

    Raises:
        RepositoryError: a member is missing or cannot take part, another model has a name, or the disk refuses.
    """
    require_members(spec, repository)
    spec = _known_spec(spec, repository)
    folder, mean = repository / spec.name, repository / averaging_name(spec.name)
    _require_ours([folder, mean], force=force)
    done = _render_members(spec, repository)
    spec = named_spec(pinned_spec(spec, repository), repository)
    ensemble, averaging, dtypes = ensemble_configs(spec, repository)
    config, mean_config = _config_text(folder, ensemble, force=force), _config_text(mean, averaging, force=force)
    model = averaging_model(spec, dtypes=dtypes).SerializeToString(deterministic=True)
    labels = _labels_file(spec)
    done += write_all(mean, {f"{AVERAGING_VERSION}/model.onnx": model, **labels, CONFIG: mean_config})
    # Triton wants a version folder although nothing is in it, and git keeps no empty folders.
    return done + write_all(folder, {"1/.gitkeep": b"", **labels, CONFIG: config})


def ensemble_configs(spec: CascadeSpec, repository: Path) -> tuple[ModelConfig, ModelConfig, list[str]]:
    """The configurations of an ensemble and of its averaging model, and the dtypes of its members' outputs.

    Raises:
        RepositoryError: a member has no config, no such output, or no batch axis.
    """
    dtypes, limits = [], [spec.limits.max_batch_size]
    for member in spec.members:
        facts, what = facts_from_folder(repository / member.name), f"member {member.name}"
        if facts.outputs is None:
            fix = "an ensemble needs them: write them there"
            raise RepositoryError(what, got=f"no outputs in its {CONFIG}", fix=fix)
        if member.output not in facts.outputs:
            known = ", ".join(facts.outputs) or "none"
            raise RepositoryError(what, got=f"outputs {known}", expected=f"an output {member.output}")
        if not facts.max_batch_size:
            raise RepositoryError(what, got="max_batch_size 0", expected="at least 1")
        dtypes.append(facts.outputs[member.output].dtype)
        limits.append(facts.max_batch_size)
    for model in spec.derived_for(0):
        # What no file says is left to the server, which splits no batch of an ensemble.
        limits.append(facts_from_folder(repository / model.name).max_batch_size or model.max_batch_size)
    largest = min(limits)
    averaging = averaging_config(spec, max_batch_size=largest, dtypes=dtypes)
    return ensemble_config(spec, max_batch_size=largest), averaging, dtypes


def ensemble_from_cascade(spec: CascadeSpec, name: str) -> CascadeSpec:
    """The plan of an ensemble, called `name`, that asks all of a cascade's members side by side.

    Raises:
        RepositoryError: the cascade answers from its last stage alone, so an average of all would differ.
    """
    if spec.combine == "last" and len(spec.stages) > 1:
        raise RepositoryError(
            f"cascade {spec.name}",
            got='combine "last" over several stages, whose full ensemble is the last stage alone',
            expected="mean_logit, mean_prob or vote",
            fix="plan with another combine mode",
        )
    lenient = all(stage.on_failure == "answer" for stage in spec.stages)
    stage = Stage(members=spec.members, on_failure="answer" if lenient else "error")
    return dataclasses.replace(spec, name=name, stages=(stage,), fit=None)


def render_member(folder: Path, *, force: bool = False) -> Rendering:
    """Writes an exported model's configs from its manifest: config.pbtxt, and configs/gpu.pbtxt for GPUs.

    `tritonserver --model-config-name=gpu` takes the second where there is one, so that one repository serves
    both kinds of machine. A config that was not rendered, or was edited, is kept unless `force` overwrites it.

    Raises:
        SpecError: the manifest is wrong.
        RepositoryError: no config can be written for this kind of model, or the disk refuses.
    """
    if not force and not may_replace(folder / CONFIG):
        return Rendering(kept=(folder / CONFIG,))
    cpu, gpu = (text_from_config(config, source=MANIFEST) for config in _exported_configs(folder))
    write_gpu = gpu != cpu and (force or may_replace(folder / "configs" / "gpu.pbtxt"))
    return write_all(folder, {**({"configs/gpu.pbtxt": gpu} if write_gpu else {}), CONFIG: cpu})


def _exported_configs(folder: Path) -> tuple[ModelConfig, ModelConfig]:
    """The configurations of an exported model for machines without and with a GPU."""
    path = folder / MANIFEST
    manifest = deriving_from_path(path) if is_deriving(path) else manifest_from_path(path)
    if manifest.name != folder.name:
        raise RepositoryError(f"{path} name", got=manifest.name, expected=folder.name)
    if isinstance(manifest, DerivingManifest):
        return deriving_config(manifest), deriving_config(manifest)
    return member_config(manifest), member_config(manifest, device="gpu")


def _known_spec(spec: CascadeSpec, repository: Path) -> CascadeSpec:
    """The plan with its placeholders replaced by what the members' folders say."""
    facts = {member.name: facts_of_member(repository / member.name) for member in spec.members}
    spec = adopted_spec(spec, facts)
    require_known_input(spec, facts)
    return spec


def _require_ours(folders: Iterable[Path], *, force: bool) -> None:
    for folder in folders:
        path, plan = folder / CONFIG, plan_path(folder)
        # A rendered cascade has a plan beside a model.py that loads the runtime.
        is_cascade = plan is not None and is_shim(plan.with_name("model.py"))
        if not (force or may_replace(path) or is_marked(text_from_path(path)) or is_cascade):
            fix = "choose another name, or overwrite it with `force`"
            raise RepositoryError(str(path), got="a config that was not written here", fix=fix)


def _config_text(folder: Path, rendered: ModelConfig, *, force: bool) -> str:
    """The text of a rendered model's config, with a person's settings in the present one."""
    path = folder / CONFIG
    if force or may_replace(path):
        return text_from_config(rendered)
    # In a preview the config is a link, and errors name the file that it leads to.
    return tuned_text(text_from_path(path), rendered, path=path.readlink() if path.is_symlink() else path)


def _render_members(spec: CascadeSpec, repository: Path) -> Rendering:
    done = Rendering()
    for member in spec.members:
        if (repository / member.name / MANIFEST).is_file():
            done += render_member(repository / member.name)
    return done


def _version_to_write(folder: Path, version: int | None, config: ModelConfig) -> int:
    """The version folder to write: the served one, or the given one, which must come to be served."""
    if version is None:
        return served_version(folder, config) or max(versions_in(folder), default=1)
    policy, present = policy_of(config), versions_in(folder)
    if version < 1 or version not in served_versions(policy, (*present, version)):
        expected = f"at least {max(present, default=1)}"
        fix = "Triton serves the highest, so a lower one would never be used"
        if policy:
            expected, fix = f"one that the version_policy in its {CONFIG} serves", "change the policy"
        raise RepositoryError(f"{folder} version", got=version, expected=expected, fix=fix)
    return version


def _labels_file(spec: CascadeSpec) -> dict[str, bytes | str]:
    return {} if spec.labels is None else {LABELS: label_text(spec.labels)}
