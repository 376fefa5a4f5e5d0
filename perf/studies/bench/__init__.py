"""Every route on the same members, interleaved, against what the members themselves allow."""
