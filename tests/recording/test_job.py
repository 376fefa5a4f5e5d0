from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.app import run
from tests.recording.builders import rows_of, write_member


def test_a_part_that_only_restart_mends_is_not_said_to_be_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(300)
    # The member has no finite score for it, after a first piece that is kept.
    rows[290] = 0
    np.savez(tmp_path / "d.npz", images=rows)
    write_member(tmp_path / "repository", "m", fragile=True)
    words = ["record", "m", "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "out.npz")]
    words += ["--repository", str(tmp_path / "repository")]
    assert run(words) == 2
    assert "the same command goes on from there" in capsys.readouterr().err
    part = next((tmp_path / ".out.npz.parts").glob("0*.npz"))
    # A whole archive, so that it is not asked for again, but without what it has to hold.
    np.savez(part, kept=np.arange(256), digest=np.zeros(32, np.uint8))
    assert run([*words, "--skip-bad"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("use --restart")
    assert run([*words, "--skip-bad", "--restart"]) == 0


@pytest.mark.parametrize(("cost", "shown"), [("0.25", "0.25"), ("1495552", "1,495,552"), ("3e29", "3e+29")])
def test_costs_are_shown_in_few_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cost: str, shown: str
) -> None:
    np.savez(tmp_path / "d.npz", images=rows_of(12), labels=np.arange(12) % 3)
    write_member(tmp_path / "repository", "m")
    words = ["record", "m", "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "out.npz")]
    words += ["--repository", str(tmp_path / "repository")]
    assert run([*words, "--cost", f"m={cost}"]) == 0
    assert f", cost {shown}\n" in capsys.readouterr().out
    assert run([*words, "--cost", "m=1e307"]) == 2
    assert "expected NAME=COST with 0, or numbers from" in capsys.readouterr().err
