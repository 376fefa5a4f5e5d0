import pytest

from orchestrator.errors import SENT, for_clients, repeated, sent

FRAME = 'File "/srv/models/a/1/model.py", line 3, in execute'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "message: ValueError: no w.bin\n\nAt:\n  /srv/a/model.py(12): execute\n",
            "message: ValueError: no w.bin",
        ),
        (f"Traceback (most recent call last):\n  {FRAME}\n    go()\nValueError: 3 > 2\n", "ValueError: 3 > 2"),
        (f"message: {FRAME}", 'message: File "model.py", line 3, in execute'),
        ("/src/core/session.cc:123 Run: got 2 of 3", "session.cc:123 Run: got 2 of 3"),
        ("open:/home/me/a.bin, (~/b/c) and file:///d/e", "open:a.bin, (c) and e"),
        ("no '/home/me/My Data/a.bin'", "no 'a.bin'"),
        ("1/2 of FP32/FP16 at http://host/a/b, model a/b", "1/2 of FP32/FP16 at http://host/a/b, model a/b"),
        ("two\nlines", "two lines"),
    ],
)
def test_clients_are_told_the_last_line_and_no_folder(text: str, told: str) -> None:
    assert for_clients(text) == told


def test_repeated_names_are_found_with_few_comparisons() -> None:
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [*(Name(number) for number in range(500)), Name("7"), Name("30"), Name("7")]
    assert repeated(names) == ["30", "7"]
    assert compared < 2 * len(names)
    assert repeated([]) == []


def test_an_error_that_quotes_a_whole_input_is_cut_off() -> None:
    assert sent("x" * SENT) == "x" * SENT
    said = for_clients(
        "no such word: " + "x" * 10_000_000 + "\nTraceback (most recent call last):\n  a\nValueError: b"
    )
    assert said.startswith("no such word: xxx")
    assert len(said) <= SENT + 3
