"""A name that matches no known one is shown with what it differs by."""

from __future__ import annotations

import pytest

from orchestrator.rows.near_names import names_beside

KNOWN = ("caf\xe9", "great white shark", "cat", "n01440764", "\u732b")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Cat", "Cat (nearest: cat)"),
        ("great_white_shark", r"'great_white_shark' (nearest: 'great white shark')"),
        ("great white sharc", "great white sharc (nearest: great white shark)"),
        ("cat\u200b", r"'cat\u200b' (nearest: 'cat')"),
        ("great\xa0white shark", r"'great\xa0white shark' (nearest: 'great white shark')"),
        ("great  white shark", r"'great\x20\x20white shark' (nearest: 'great white shark')"),
        ("cafe", r"'cafe' (nearest: 'caf\xe9')"),
        ("c\u0430t", "c\u0430t"),  # a Cyrillic letter, too short a name to be near by the rest
        ("gre\u0430t white shark", r"'gre\u0430t white shark' (nearest: 'great white shark')"),
        ("n01440765", "n01440765"),
        ("yak", "yak"),
        ("\u72ac", "\u72ac"),
        ("odd\x00", r"'odd\x00'"),
    ],
)
def test_the_nearest_name_is_shown_and_escaped_where_eyes_cannot_tell(name: str, shown: str) -> None:
    assert names_beside([name], KNOWN) == shown


def test_a_few_of_many_are_shown() -> None:
    assert names_beside([f"x{number}" for number in range(9)], KNOWN) == "x0, x1, x2, x3, x4, ..."
