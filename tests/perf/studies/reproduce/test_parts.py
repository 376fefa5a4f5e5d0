from __future__ import annotations

import pytest

from perf.studies.reproduce.parts import MEMBERS, SELF, groups_from_names


def test_members_are_sorted_by_architecture_and_the_pair_stands_apart() -> None:
    family = groups_from_names(MEMBERS)
    assert family.sizes == tuple((f"glyphs_b{size}_s0", f"glyphs_b{size}_s1") for size in range(6))
    assert family.pair == SELF
    assert groups_from_names(["glyphs_b0_s0", SELF[0]]).pair == ()


@pytest.mark.export
def test_the_members_are_those_that_the_export_makes() -> None:
    from perf.studies.glyphs.members import glyphs_members

    assert tuple(member.name for member in glyphs_members()) == MEMBERS
