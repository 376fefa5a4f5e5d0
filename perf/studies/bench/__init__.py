"""The bench: every route on the same members, interleaved, against the bound that follows from the members."""
