"""Names of classes in text files, and which of them are the same."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.answer import first_misplaced, first_unlike, names_from_text

# Text as a name may be: no line feed, no blanks around it, which a file leaves off.
NAME = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r"), min_size=1).filter(
    lambda text: text == text.strip() and not text.startswith("\ufeff")
)


@given(names=st.lists(NAME, min_size=1), ending=st.sampled_from(["\n", "\r\n"]), more=st.integers(0, 3))
def test_a_file_gives_the_names_it_was_written_with_whatever_the_line_ends(
    names: list[str], ending: str, more: int
) -> None:
    text = ending.join([*names, *[""] * more])
    assert names_from_text(f"\ufeff{text}") == names_from_text(text) == tuple(names)


def test_an_empty_line_between_names_is_a_class_without_one() -> None:
    assert names_from_text("a\n\nc\n \n") == ("a", "", "c")
    assert names_from_text("next\x85line\u2028separator\n") == ("next\x85line\u2028separator",)


@given(names=st.lists(NAME))
def test_the_two_ways_to_write_a_letter_are_one_name(names: list[str]) -> None:
    ways = [[unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD")]
    assert first_unlike(*ways) is None
    assert first_unlike(names, ways[1]) is None
    assert first_misplaced(*ways) is None


def test_the_first_difference_is_found_also_in_length() -> None:
    assert first_unlike(("a", "b"), ("a", "c")) == 1
    assert first_unlike(("a",), ("a", "c")) == first_unlike(("a", "c"), ("a",)) == 1


def test_a_name_of_another_class_is_misplaced_and_another_spelling_is_not() -> None:
    assert first_misplaced(("a", "c", "b"), ("a", "b", "c")) == 1
    assert first_misplaced(("A", "bee", ""), ("a", "b", "c")) is None
