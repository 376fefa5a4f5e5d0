from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.serving.options import ServeOptions

PORTS = st.integers(1, 65535)


def options(**changes: object) -> ServeOptions:
    return ServeOptions(**{"repository": Path("models"), **changes})  # type: ignore[arg-type]


def test_the_defaults_are_tritons_ports_on_this_machine_alone() -> None:
    made = options()
    assert (made.host, made.http_port, made.grpc_port, made.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)


@given(st.lists(PORTS, min_size=3, max_size=3))
def test_ports_are_accepted_exactly_when_they_differ(ports: list[int]) -> None:
    chosen = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    if len(set(ports)) == 3:
        options(**chosen)
    else:
        with pytest.raises(SpecError, match="a port of its own"):
            options(**chosen)


def test_any_number_of_ports_may_be_left_to_chance() -> None:
    options(http_port=0, grpc_port=0, metrics_port=0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "10.1.2.3", "localhost", "gpu-box.example.org", "::1", "::"]
)
def test_a_host_is_an_address_or_a_name(host: str) -> None:
    assert options(host=host).host == host


@pytest.mark.parametrize(
    "host", ["", "127.0.0.999", "1.2.3", "[::1]", "1::2::3", "a b", "-x", "http://here", "x;rm", None]
)
def test_anything_else_is_no_host(host: object) -> None:
    with pytest.raises(SpecError, match="host"):
        options(host=host)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        options(http_port=70000, grpc_port=-1, metrics_port=True, startup_timeout_s=0, log_verbose=99, shm_bytes=5)
    fields = {"http_port", "grpc_port", "metrics_port", "startup_timeout_s", "log_verbose", "shm_bytes"}
    assert set(caught.value.faults) == fields
