"""The report of a plan: its numbers, charts, and one page that needs no other file and no network."""
