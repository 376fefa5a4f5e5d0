"""The claims in the document: what each asks, by which rule it was chosen, and its table's columns."""

from __future__ import annotations

from dataclasses import dataclass

from perf.studies.reproduce import tables
from perf.studies.reproduce.tables import Column

_VALUES = (tables.ACCURACY, tables.OTHER_ACCURACY, tables.DIFFERENCE, tables.FACTOR)
_HEAD = (tables.LABEL, tables.ROWS, tables.PLAN)


@dataclass(frozen=True, kw_only=True)
class ClaimSection:
    """One claim in the document.

    Args:
        claim: key of its lines.
        title, text: what is asked, and by which rule it was chosen.
        columns: of the table; times are added where they were measured.
    """

    claim: str
    title: str
    text: str
    columns: tuple[Column, ...]


SECTIONS = (
    ClaimSection(
        claim="1",
        title="1. Two averaged models against one bigger",
        text="""Two members whose logits are averaged, always both asked, against a bigger single model. Of a
        size's two seeds the one that is more accurate on the plan part stands for it.""",
        columns=(*_HEAD, *_VALUES),
    ),
    ClaimSection(
        claim="2",
        title="2. Ensembles against single models over the range of costs",
        text="""For every cost at which there is a single model, the average of two to four members that costs no
        more and is most accurate on the plan part.""",
        columns=(*_HEAD, *_VALUES),
    ),
    ClaimSection(
        claim="3",
        title="3. Cascades against every single model at no lower accuracy",
        text="""The rule with the margin. Any members may take part, the single model included.""",
        columns=(*_HEAD, tables.EXITS, *_VALUES),
    ),
    ClaimSection(
        claim="4",
        title="4. The same with a bound on the worst case",
        text="""The rule with the margin, among plans whose members together cost no more than the single model: no
        row can cost more than it would there. Where none is ahead by the margin, the cheapest that is as accurate
        on the plan part, if there is one, stands in a line of its own.""",
        columns=(*_HEAD, tables.EXITS, *_VALUES, tables.WORST),
    ),
    ClaimSection(
        claim="5",
        title="5. A self-cascade",
        text="""One network at two resolutions, the low one first, against the same network at the high resolution
        alone. The first line follows the rule with the margin. The next three are the cheapest plans that are as
        accurate as the high resolution on the plan part: of the two, averaged or with the second answer alone, and
        of the family without them. The last line holds the self-cascade against the family's cascade.""",
        columns=(*_HEAD, tables.EXITS, *_VALUES),
    ),
    ClaimSection(
        claim="6a",
        title="6a. Combine modes and scores at the same accuracy",
        text="""For each, the cheapest plan that is as accurate on the plan part as the most accurate single model.
        Difference and factor are against the first line, the planner's defaults.""",
        columns=(*_HEAD, tables.ACCURACY, tables.COST, tables.DIFFERENCE, tables.FACTOR),
    ),
    ClaimSection(
        claim="6b",
        title="6b. Combine modes and scores at the same cost",
        text="""For each, the most accurate plan on the plan part that costs no more there than the first line's in
        the table above. Difference and factor are against it.""",
        columns=(*_HEAD, tables.ACCURACY, tables.COST, tables.DIFFERENCE, tables.FACTOR),
    ),
    ClaimSection(
        claim="7",
        title="7. Two stages against three and four",
        text="""The cheapest plan that is as accurate on the plan part as the single model named, with at most so
        many stages; one stage is a single model or an ensemble.""",
        columns=(*_HEAD, tables.EXITS, tables.DIFFERENCE, tables.FACTOR),
    ),
)
