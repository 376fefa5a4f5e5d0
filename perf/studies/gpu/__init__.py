"""`python -m perf gpu`: cascades of large networks against the largest alone, on a GPU."""
