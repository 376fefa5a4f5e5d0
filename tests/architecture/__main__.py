"""`python -m tests.architecture`: the size and shape of the tree as a table; exit code 1 where a limit is broken.

Files that a row or a plan passes need a run of the program: test_paths.py counts those.
"""

import sys

from tests.architecture import tree

# What there is today: to be lowered with it, and raised only for a feature that needs it.
MOST_MODULES = 320
MOST_LINES = 65_200


def rows() -> list[tuple[str, int, int, list[str]]]:
    """Name, figure, limit, and what broke it."""
    library = tree.modules()
    twice = tree.class_names_used_twice()
    circle = tree.import_circle()
    late = [f"{path.relative_to(tree.ROOT)}:{line}" for path in library for line in tree.late_imports(path)]
    copies = [f"{fact.name}: {place}" for fact in tree.FACTS for place in tree.places_of(fact)]
    return [
        ("library modules", len(library), MOST_MODULES, []),
        ("library lines", sum(map(tree.lines_of, library)), MOST_LINES, []),
        (
            "public class names used twice",
            len(twice),
            0,
            [f"{name}: {', '.join(at)}" for name, at in twice.items()],
        ),
        ("modules in an import circle", len(circle), 0, circle),
        ("imports inside functions without a reason", len(late), 0, late),
        ("copies of facts", len(copies), 0, copies),
    ]


def main() -> int:
    broken = False
    for name, figure, limit, places in rows():
        broken |= figure > limit
        sys.stdout.write(f"{name:<45}{figure:>7}  at most {limit}\n")
        sys.stdout.writelines(f"    {place}\n" for place in places)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
