from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.load.inputs import next_prime, write_input_data


@given(st.integers(min_value=-5, max_value=5000))
def test_the_next_prime_is_prime_and_the_nearest(number: int) -> None:
    def is_prime(value: int) -> bool:
        return value > 1 and all(value % divisor for divisor in range(2, value))

    found = next_prime(number)
    assert found >= number
    assert is_prime(found)
    assert not any(is_prime(value) for value in range(max(number, 2), found))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_rows_read_back_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    rows = (255 * np.random.default_rng(0).random((3, 2, 4))).astype(dtype)
    write_input_data(tmp_path / "a" / "in.json", rows, input_name="image")
    steps = json.loads((tmp_path / "a" / "in.json").read_text())["data"]
    back = [np.frombuffer(base64.b64decode(step["image"]["b64"]), dtype).reshape(2, 4) for step in steps]
    np.testing.assert_array_equal(np.stack(back), rows)
