"""Any models of a server under load, without rivals, bounds or verdicts: those are perf/bench."""
