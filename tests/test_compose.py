"""No container engine runs here: the file is held against the compose specification and the repository."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.tensorrt import in_image
from export.tensorrt.engine import EngineOptions
from export.tensorrt.member import MOUNTED, USER, compose_command
from orchestrator.probe import SCRIPT
from orchestrator.repository.check import check
from orchestrator.repository.index import plans_in
from orchestrator.serving.control import IMAGE
from orchestrator.spec.triton import PINNED, RELEASES
from tests.repository.builders import render_output

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
REPOSITORY = ROOT / "model_repository"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# The services that listen; `engines` builds and ends.
SERVERS = {name: service for name, service in SERVICES.items() if name != "engines"}
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_server = pytest.mark.parametrize("service", SERVERS.values(), ids=SERVERS)


def filled_in(text: str) -> str:
    """What compose makes of `${NAME:-default}` where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def option(service: dict[str, Any], name: str) -> str | None:
    values = [word.partition("=")[2] for word in service["command"] if word.startswith(f"--{name}=")]
    return values[0] if values else None


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, f"{text} is not in whole seconds"
    return int(match[1])


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_follows_the_compose_specification() -> None:
    result = validate(FILE)
    assert result.returncode == 0, result.stdout


def test_the_validation_would_notice_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("shm_size:", "shm-size:"))
    assert validate(wrong).returncode != 0


def test_a_gpu_is_the_default_and_the_cpu_a_profile() -> None:
    default = [name for name, service in SERVICES.items() if not service.get("profiles")]
    assert default == ["triton"]
    (device,) = SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert option(SERVICES["triton"], "model-config-name") == "gpu"
    assert SERVICES["triton-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["triton-cpu"]
    assert option(SERVICES["triton-cpu"], "model-config-name") is None


def test_the_two_services_differ_in_the_gpu_alone() -> None:
    gpu, cpu = (dict(SERVICES[name]) for name in ("triton", "triton-cpu"))
    gpu.pop("deploy")
    cpu.pop("profiles")
    gpu["command"] = [word for word in gpu["command"] if word != "--model-config-name=gpu"]
    assert gpu == cpu


@each_service
def test_it_is_nvidias_image_of_the_pinned_release(service: dict[str, Any]) -> None:
    assert filled_in(service["image"]) == f"nvcr.io/nvidia/tritonserver:{PINNED}-py3"


def test_one_release_is_named_everywhere() -> None:
    pinned = set(re.findall(r"TRITON_VERSION:-([\d.]+)", FILE.read_text()))
    assert pinned == {PINNED}
    assert PINNED in RELEASES
    for path in (ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))):
        if path.is_file():
            tags = set(re.findall(r"(\d\d\.\d\d)-py3", path.read_text()))
            assert tags <= pinned, f"{path} names another image than docker-compose.yml"


@each_server
def test_the_repository_is_mounted_read_only_and_a_missing_one_is_an_error(service: dict[str, Any]) -> None:
    (volume,) = service["volumes"]
    assert volume["read_only"] is True
    assert volume["bind"]["create_host_path"] is False
    assert volume["target"] == option(service, "model-repository")


@each_server
def test_it_is_shut_to_other_machines_and_runs_with_no_rights_it_does_not_need(service: dict[str, Any]) -> None:
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"] * 3
    assert [filled_in(port).split(":")[1:] for port in service["ports"]] == [
        ["8000", "8000"], ["8001", "8001"], ["8002", "8002"],
    ]  # fmt: skip
    uid, gid = service["user"].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


@each_server
def test_no_telemetry_leaves_the_container(service: dict[str, Any]) -> None:
    assert service["environment"]["ORT_DISABLE_TELEMETRY"] == "1"


@each_server
def test_requests_in_flight_have_time_to_finish(service: dict[str, Any]) -> None:
    exit_timeout = option(service, "exit-timeout-secs")
    assert exit_timeout is not None
    assert seconds(service["stop_grace_period"]) > int(exit_timeout)


@each_server
def test_shared_memory_holds_what_the_backend_takes_at_the_start(service: dict[str, Any]) -> None:
    assert service["shm_size"] == "1gb"
    taken = [int(word.rpartition("=")[2]) for word in service["command"] if "shm-default-byte-size" in word]
    cascades = 4
    assert taken[0] * cascades < 2**30
    assert service["ulimits"] == {"memlock": -1, "stack": 67108864}


@each_server
def test_health_is_asked_of_the_server_and_the_command_is_python(service: dict[str, Any]) -> None:
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert command[:3] == ["python3", f"/models/{SCRIPT}", "--alive"]
    assert seconds(service["healthcheck"]["timeout"]) < seconds(service["healthcheck"]["interval"])
    assert service["restart"] == "unless-stopped"


def test_the_health_check_fails_while_nobody_answers() -> None:
    _, _, _, *options = SERVICES["triton"]["healthcheck"]["test"]
    command = [sys.executable, "-I", "-S", str(ROOT / "orchestrator" / "probe.py"), *options]
    done = subprocess.run([*command, "--url=127.0.0.1:1", "--model=x"], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 1


def test_make_compose_renders_into_the_folder_that_is_mounted() -> None:
    (volume,) = SERVICES["triton"]["volumes"]
    source = filled_in(volume["source"])
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^compose:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe, "make compose is not there"
    assert "render" in recipe[1]
    assert "--standalone" in recipe[1]
    assert f"--output {source.removeprefix('./')}" in recipe[1]


def test_what_is_mounted_holds_every_model_and_passes_the_check(tmp_path: Path) -> None:
    cascades, ensembles = plans_in(REPOSITORY)
    assert cascades
    assert ensembles
    output = tmp_path / "model_repository"
    render_output(REPOSITORY, output, cascades=cascades, ensembles=ensembles, standalone=True)
    report = check(output)
    assert report, report.faults
    assert (output / SCRIPT).read_bytes() == (ROOT / "orchestrator" / "probe.py").read_bytes()
    assert not report.notes
    for spec in (*cascades, *ensembles):
        assert {spec.name, *(member.name for member in spec.members)} <= set(report.checked)
    for path in output.rglob("*"):
        assert path.stat().st_mode & 0o004, f"{path} cannot be read by the image's user"
    named = {
        word.partition("=")[2]
        for service in SERVERS.values()
        for word in service["command"]
        if word.startswith("--load-model=")
    }
    assert named <= set(report.checked)


def test_the_embedded_server_names_the_image_that_is_served() -> None:
    assert {filled_in(service["image"]) for service in SERVICES.values()} == {IMAGE}


def test_engines_are_built_on_a_gpu_into_the_checkouts_repository_and_nowhere_else() -> None:
    engines = SERVICES["engines"]
    assert engines["profiles"] == ["engines"]
    assert engines["deploy"] == SERVICES["triton"]["deploy"]
    assert engines["restart"] == "no"
    assert engines["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in engines["security_opt"]
    assert "ports" not in engines
    code, models = engines["volumes"]
    assert (code["source"], code["read_only"]) == (".", True)
    assert engines["working_dir"] == code["target"]
    assert "read_only" not in models
    assert models["bind"]["create_host_path"] is False
    assert Path(filled_in(models["source"])) == MOUNTED
    assert Path(models["target"]) == Path(code["target"]) / MOUNTED
    assert tuple(filled_in(engines["user"]).split(":")) == USER


def test_engines_start_with_a_file_of_the_checkout_that_needs_no_package() -> None:
    _, python, script = SERVICES["engines"]["entrypoint"]
    assert python == "python3"
    code = f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='imported')"
    # -I: no current folder and no variables, -S: no installed packages.
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False).returncode == 0
    assert (ROOT / in_image.LOCK).is_file()


def test_the_command_that_errors_name_sets_only_variables_the_file_has() -> None:
    options = EngineOptions(precision="fp16")
    command = compose_command(
        "small", options, repository=Path("my models"), output=Path("my models"), name="small_trt", user="7:8"
    )
    variables = re.findall(r"(\w+)=", command)
    assert variables == ["COMMITTEE_UID", "COMMITTEE_GID", "COMMITTEE_MODELS"]
    assert all("${" + name + ":-" in FILE.read_text() for name in variables)
    assert command.endswith(" docker compose run --rm engines small --min 1 --opt 16 --max 64 --precision fp16")
    assert f"'{Path.cwd() / 'my models'}'" in command
    usual = compose_command(
        "small", options, repository=MOUNTED, output=MOUNTED, name="small_trt", user="1000:1000"
    )
    assert usual.startswith("docker compose run --rm engines small ")
