from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.tensorrt.options import EngineOptions
from orchestrator.errors import SpecError

SIZES = st.integers(min_value=1, max_value=300)


@given(st.tuples(SIZES, SIZES, SIZES).map(sorted))
def test_batches_to_compare_hold_the_profiles_ends_and_stay_inside_it(sizes: list[int]) -> None:
    low, opt, high = sizes
    batches = EngineOptions(min_rows=low, opt_rows=opt, max_rows=high).batches
    assert list(batches) == sorted(set(batches))
    assert {low, opt, high} <= set(batches)
    assert (batches[0], batches[-1]) == (low, high)


@given(st.tuples(SIZES, SIZES, SIZES))
def test_a_profile_out_of_order_is_refused(sizes: tuple[int, int, int]) -> None:
    low, opt, high = sizes
    if low <= opt <= high:
        EngineOptions(min_rows=low, opt_rows=opt, max_rows=high)
        return
    with pytest.raises(SpecError, match="TensorRT options: "):
        EngineOptions(min_rows=low, opt_rows=opt, max_rows=high)


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        EngineOptions(min_rows=0, opt_rows=1, max_rows=-1, precision="bf16", workspace_mib=0)
    assert set(caught.value.faults) == {"min_rows", "max_rows", "precision", "workspace_mib"}
