"""Routes: every way to get an answer from the same members, rendered side by side into one repository.

`spec` lists the routes; `baselines/` has the code of those that are not ours, which stands without it; `recipes`
has the scenarios by name; `scenario` makes and keeps their members, and rows whose exits are known; `rendering`
writes the repository.
"""
