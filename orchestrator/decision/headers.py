"""Which request parameters are headers that Triton forwards, and so say nothing about the decision.

With `--http-header-forward-pattern` or `--grpc-header-forward-pattern` the headers of a request arrive among its
parameters, as strings, under names of any case.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from orchestrator.spec.header_pattern import MAX_HEADER_NAME, header_regex

# Request headers whose names are one word; all others have a dash, which no parameter of a cascade has. Those that
# are registered and sent by clients and proxies, those of tracing (W3C, B3, New Relic), and the usual API key.
_ONE_WORD = """
accept apikey authorization b3 baggage connection cookie cookie2 date digest dnt dpop expect forwarded from host
link newrelic origin pragma priority range referer signature soapaction te timeout traceparent tracestate trailer
upgrade urgency via warning
"""
ONE_WORD = frozenset(_ONE_WORD.split())
# Names that are looked at once; clients could send others for ever.
_MAX_KEPT = 1024


class ForwardedHeaders:
    """Tells forwarded headers from parameters of a cascade.

    Args:
        own: names of the cascade's parameters, which no header hides.
        pattern: what names headers have, searched for in any case; None for names with a dash, or of one word
            that is a header's.
    """

    def __init__(self, own: Collection[str], pattern: str | None = None) -> None:
        self._own = frozenset(own)
        self._regex = None if pattern is None else header_regex(pattern)
        self._known: dict[str, bool] = {}

    def without(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """The parameters that are no headers."""
        return {name: value for name, value in parameters.items() if not self.is_header(name, value)}

    def is_header(self, name: str, value: object) -> bool:
        """Whether a parameter is a forwarded header; those are strings, whatever they mean."""
        if not isinstance(value, str):
            return False
        known = self._known.get(name)
        if known is None:
            known = self._is_header_name(name)
            if len(self._known) < _MAX_KEPT and len(name) <= MAX_HEADER_NAME:
                self._known[name] = known
        return known

    def _is_header_name(self, name: str) -> bool:
        if name in self._own:
            return False
        if self._regex is not None:
            return len(name) <= MAX_HEADER_NAME and self._regex.search(name) is not None
        lower = name.lower()
        if lower in ONE_WORD or lower.startswith(":"):
            return True
        # `max-stage` is no header anybody sends, but a parameter with a dash where an underscore belongs.
        return "-" in lower and lower.replace("-", "_") not in self._own
