"""No cluster runs here: manifests are held against Kubernetes' schemas, the compose file and the repository."""

import contextlib
import inspect
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.__main__ import COMMANDS
from orchestrator.bls.metrics import HELP
from orchestrator.cli.batch import REFUSED, batch
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.errors import CommitteeError
from orchestrator.probe import SCRIPT
from orchestrator.repository.index import plans_in
from orchestrator.rows.digits import digits_split
from tests.repository.builders import render_output
from tests.servers import running_server
from tests.test_compose import REPOSITORY, SERVICES, filled_in, option

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
OVERLAYS = {"cpu": "triton-cpu", "gpu": "triton"}  # and the service of docker-compose.yml that it is like
COMPONENTS = ("object-storage", "keda", "prometheus")
# Resources of Kubernetes itself; the others are of operators, whose schemas no package has.
OWN = ("v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1")
METRIC = re.compile(r"\b(?:committee|nv)_[a-z_]+\b")


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


def from_file(place: str) -> dict[str, Any]:
    (found,) = documents((FOLDER / place).read_text())
    return found


@cache
def built(folder: Path) -> tuple[dict[str, Any], ...]:
    """What `kubectl kustomize` makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, which puts the manifests together")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(documents(done.stdout))


def of_kind(found: tuple[dict[str, Any], ...], kind: str) -> dict[str, Any]:
    return next(one for one in found if one["kind"] == kind)


def server_of(found: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return of_kind(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture
def with_components(tmp_path: Path) -> Path:
    """An overlay of a user's own, with everything that can be added."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "mine"
    mine.mkdir()
    lines = [f"  - ../{name}\n" for name in COMPONENTS]
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../cpu]\ncomponents:\n"
    (mine / "kustomization.yaml").write_text(head + "".join(lines))
    return mine


@pytest.mark.parametrize("place", FILES, ids=[str(path.relative_to(FOLDER)) for path in FILES])
def test_each_manifest_follows_kubernetes_schemas(place: Path) -> None:
    own = [one for one in documents(place.read_text()) if one["apiVersion"] in OWN]
    if place.parent.name in ("base", "batch"):
        assert own
    for one in own:
        validate(one)


@pytest.mark.parametrize("overlay", [*OVERLAYS, "batch"])
def test_what_kustomize_makes_of_an_overlay_follows_them_too(overlay: str) -> None:
    for one in built(FOLDER / overlay):
        validate(one)


def test_the_validation_would_notice_a_mistake() -> None:
    wrong = from_file("base/deployment.yaml")
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(Exception, match="readynessProbe"):
        validate(wrong)


@pytest.mark.parametrize(("overlay", "service"), OVERLAYS.items())
def test_the_server_is_the_one_of_docker_compose(overlay: str, service: str) -> None:
    server, compose = server_of(built(FOLDER / overlay)), SERVICES[service]
    assert server["image"] == filled_in(compose["image"])
    assert server["command"] == compose["command"]
    assert {one["name"]: one["value"] for one in server["env"]} == compose["environment"]
    ports = [filled_in(port).split(":")[-1] for port in compose["ports"]]
    assert [str(one["containerPort"]) for one in server["ports"]] == ports
    pod = of_kind(built(FOLDER / overlay), "Deployment")["spec"]["template"]["spec"]
    uid, gid = compose["user"].split(":")
    assert [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup")] == [int(uid), int(gid)]
    volumes = {one["name"]: one["emptyDir"] for one in pod["volumes"]}
    mounts = {one["mountPath"]: one for one in server["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]["name"]] == {"medium": "Memory", "sizeLimit": "1Gi"}
    assert compose["shm_size"] == "1gb"
    assert mounts[option(compose, "model-repository") or ""]["readOnly"] is True
    assert ("nvidia.com/gpu" in server["resources"]["limits"]) == ("deploy" in compose)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_finds_the_pods_and_they_run_with_no_rights_they_do_not_need(overlay: str) -> None:
    found = built(FOLDER / overlay)
    template = of_kind(found, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    for one in found:
        spec = one["spec"]
        selector = spec.get("selector", spec.get("podSelector", {}))
        assert selector.get("matchLabels", selector).items() <= labels.items(), one["kind"]
        assert selector, one["kind"]
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in (*pod["containers"], *pod["initContainers"]):
        rights = one["securityContext"]
        assert (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (False, True)
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["requests"]
        assert "memory" in one["resources"]["limits"]


def probe_words(server: dict[str, Any]) -> list[str]:
    """All words of the commands that run the probe."""
    commands = [server[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    commands.append(server["lifecycle"]["preStop"]["exec"]["command"][-1].split())
    return [word for command in commands for word in command]


@pytest.mark.parametrize("place", ["base/deployment.yaml", "kserve/runtime.yaml"])
def test_the_probes_run_what_the_rendered_repository_has(place: str, tmp_path: Path) -> None:
    spec = from_file(place)["spec"]
    server = spec.get("template", {}).get("spec", spec)["containers"][0]
    compose = SERVICES["triton-cpu"]
    target = option(server, "model-repository")
    assert [word for word in server["command"] if not word.startswith("--model-repository")] == [
        word for word in compose["command"] if not word.startswith("--model-repository")
    ]
    words = probe_words(server)
    assert {word for word in words if word.endswith(".py")} == {f"{target}/{SCRIPT}"}
    cascades, _ = plans_in(REPOSITORY)
    render_output(REPOSITORY, tmp_path / "models", cascades=cascades, standalone=True)
    assert (tmp_path / "models" / SCRIPT).is_file()
    told = subprocess.run(
        ["python3", tmp_path / "models" / SCRIPT, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= set(
        re.findall(r"--[a-z-]+", told)
    )


def test_a_pod_has_the_time_to_drain_and_to_stop() -> None:
    grace_s = from_file("base/deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert (
        grace_s == from_file("kserve/inferenceservice.yaml")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    )
    server = from_file("base/deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    stop = server["lifecycle"]["preStop"]["exec"]["command"][-1]
    pause_s, drain_s = (int(re.search(pattern, stop)[1]) for pattern in (r"sleep (\d+)", r"--timeout-s=(\d+)"))
    assert grace_s > pause_s + drain_s + int(option(server, "exit-timeout-secs") or 0)
    # A probe that is cut off before it can say why tells nothing.
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        (limit,) = [word for word in server[name]["exec"]["command"] if word.startswith("--timeout-s=")]
        assert int(limit.partition("=")[2]) < server[name]["timeoutSeconds"]


def test_everything_that_can_be_added_fits_together(with_components: Path) -> None:
    found = built(with_components)
    scaled, monitor = of_kind(found, "ScaledObject")["spec"], of_kind(found, "ServiceMonitor")["spec"]
    deployment = of_kind(found, "Deployment")
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicaCount"] == deployment["spec"]["replicas"]
    services = [one for one in found if one["kind"] == "Service"]
    chosen = [
        one for one in services if monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    ports = {port["name"] for one in chosen for port in one["spec"]["ports"]}
    assert {one["port"] for one in monitor["endpoints"]} <= ports
    policy = of_kind(found, "NetworkPolicy")["spec"]
    assert policy["egress"]
    (fetching,) = deployment["spec"]["template"]["spec"]["initContainers"]
    assert fetching["image"].startswith("rclone/rclone:")
    for one in found:
        if one["apiVersion"] in OWN:
            validate(one)


def expressions() -> dict[str, str]:
    """Everything in PromQL: of alerts by their names, of scaling by number."""
    groups = from_file("prometheus/rules.yaml")["spec"]["groups"]
    found = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    triggers = from_file("keda/scaledobject.yaml")["spec"]["triggers"]
    return found | {f"trigger {number}": one["metadata"]["query"] for number, one in enumerate(triggers)}


@pytest.mark.parametrize("name", expressions())
def test_every_expression_is_promql_about_metrics_that_the_runtime_has(name: str) -> None:
    promql_parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    text = expressions()[name]
    promql_parser.parse(text)
    with pytest.raises(ValueError, match="unexpected"):
        promql_parser.parse(f"{text} )")
    ours = {word for word in METRIC.findall(text) if word.startswith("committee")}
    assert ours <= set(HELP), ours


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes a target every half second, with labels as a cluster gives them."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus here; on Debian: apt-get install prometheus")
    labels = {"namespace": "default", "pod": "committee-0"}
    scrape = {"job_name": "committee", "static_configs": [{"targets": [target], "labels": labels}]}
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
    options |= {"web.listen-address": address, "log.level": "error"}
    process = subprocess.Popen([program, *(f"--{name}={value}" for name, value in options.items())])
    try:
        yield address
    finally:
        process.terminate()
        process.wait(30)


def asked_of(address: str, expression: str) -> list[Any]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.mark.triton
@pytest.mark.timeout(120)
def test_every_expression_has_a_value_in_a_real_prometheus_under_load(tmp_path: Path) -> None:
    # Of an alert every value is wanted, not only those that would raise it. The digits' plan has no gears.
    wanted = {name: re.sub(r"(>|==) [\d.]+", ">= 0", text) for name, text in expressions().items()}
    del wanted["CommitteeGearShifted"]
    images = digits_split("test").images[:64]
    with (
        running_server(REPOSITORY) as server,
        prometheus(server.metrics_address, tmp_path) as address,
        GrpcClient(server.grpc_address) as client,
    ):
        missing = set(wanted)
        until_s = time.monotonic() + 60
        while missing and time.monotonic() < until_s:
            client.infer("digits_cascade", images)
            with contextlib.suppress(OSError):  # it has not begun to listen
                missing = {name for name in missing if not asked_of(address, wanted[name])}
    assert not missing


def test_the_job_runs_batch_with_options_it_has_and_knows_its_exit_codes() -> None:
    job = from_file("batch/job.yaml")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    program, command, *words = container["command"]
    assert (program, command in COMMANDS) == ("committee", True)
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(batch).parameters}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
    codes = {code: rule["action"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
             for code in rule["onExitCodes"]["values"]}  # fmt: skip
    assert codes == {CommitteeError.exit_code: "FailIndex", REFUSED: "FailIndex"}
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    # The command makes no folder above its own.
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"{Path(words[-1]).parent}" in mounted
