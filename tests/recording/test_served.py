"""`committee record` against the embedded Triton says what it says in this process."""

from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path
from tests.servers import running_server

ROOT = Path(__file__).parents[2]
MEMBERS = ["digits_small", "digits_medium", "digits_large"]


@pytest.mark.triton
def test_served_members_record_what_members_in_this_process_do(tmp_path: Path) -> None:
    repository = ROOT / "model_repository"
    words = ["record", *MEMBERS, "--data", "digits:plan", "--repository", str(repository)]
    assert run([*words, "-o", str(tmp_path / "local.npz")]) == 0
    with running_server(repository) as server:
        assert run([*words, "-o", str(tmp_path / "served.npz"), "--url", server.grpc_address]) == 0
        cascade = ["record", "digits_cascade", "--cost", "digits_cascade=1", *words[4:]]
        assert run([*cascade, "--url", server.grpc_address, "-o", str(tmp_path / "cascade.npz")]) == 0
    local, served = (records_from_path(tmp_path / name) for name in ("local.npz", "served.npz"))
    for name in MEMBERS:
        np.testing.assert_allclose(served.outputs[name], local.outputs[name], atol=1e-4)
    assert served.cost == local.cost
    assert served.meta["members"] == local.meta["members"]
    assert served.meta["data_sha256"] == local.meta["data_sha256"]
    whole = records_from_path(tmp_path / "cascade.npz")
    assert whole.meta["members"]["digits_cascade"]["output_kind"] == "probabilities"
    np.testing.assert_allclose(whole.outputs["digits_cascade"].sum(axis=1), 1, atol=1e-5)
