"""A cell: one route under one load. What a study measures is a list of cells."""

from dataclasses import dataclass
from typing import Literal

BASE_CONCURRENCY = 16
BASE_DEFERRAL = 0.15
# Rates are shares of a route's capacity; this name stands for the better of the concatenating forms.
CONCATENATE = "concatenate"
CONCATENATE_FORMS = ("concatenate_1", "concatenate_4")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One route under one load.

    Args:
        scenario: name of the members.
        route: name of the route, or "concatenate" until the better form is known.
        sender: perf_analyzer keeping `concurrency` requests in flight ("closed"), our own client or
            perf_analyzer's asynchronous mode sending Poisson arrivals.
        concurrency: requests in flight, of a closed loop.
        share: of the capacity of `of_route`, the rate of Poisson arrivals.
        of_route: whose capacity; None for a closed loop.
        rate: requests per second, known once `of_route` was measured.
        batch: rows per request.
        deferral: share of rows that reach the last stage.
        earned: rows come as they are, and the plan alone decides how many reach it.
    """

    scenario: str
    route: str
    sender: Literal["closed", "poisson", "analyzer_poisson"] = "closed"
    concurrency: int | None = None
    share: float | None = None
    of_route: str | None = None
    rate: float | None = None
    batch: int = 1
    deferral: float = BASE_DEFERRAL
    earned: bool = False

    @property
    def load(self) -> str:
        """The load in short, without the route."""
        if self.sender == "closed":
            how = f"c{self.concurrency}"
        else:
            mark = "p" if self.sender == "poisson" else "pa-p"
            how = f"{mark}{100 * (self.share or 0):.0f}-{self.of_route}"
        mix = "earned" if self.earned else f"d{100 * self.deferral:.0f}"
        return f"{how}-b{self.batch}-{mix}"

    @property
    def key(self) -> str:
        """The name of the cell in results, the same in every run."""
        return f"{self.scenario}/{self.route}/{self.load}"

    @property
    def words(self) -> str:
        """The load for people."""
        if self.sender == "closed":
            how = f"{self.concurrency} in flight"
        else:
            rate = "" if self.rate is None else f" ({self.rate:.0f}/s)"
            by = ", perf_analyzer" if self.sender == "analyzer_poisson" else ""
            how = f"Poisson, {100 * (self.share or 0):.0f} % of {self.of_route}{rate}{by}"
        mix = "earned mix" if self.earned else f"{100 * self.deferral:.0f} % to the last stage"
        return f"{how}, batch {self.batch}, {mix}"


def reach_of(deferral: float, stages: int) -> tuple[float, ...]:
    """Share of rows that get to each stage: twice as many to the middle as to the last, 1.0 first."""
    if stages == 1:
        return (1.0,)
    return (1.0, *([min(1.0, 2 * deferral)] * (stages - 2)), deferral)
