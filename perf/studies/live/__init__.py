"""Any models of a server under load, without baselines, bounds or verdicts: those are the study bench."""
