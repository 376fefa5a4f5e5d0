import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_property_holds_for_ten_times_as_many_examples() -> None:
    tier = "hypothesis and not slow and not triton and not gpu and not browser"
    words = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile", "thorough", "-m", tier, "tests"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--timeout", "900"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
