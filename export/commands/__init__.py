"""`python -m export`: one module per command."""
