"""One core that answers columns of rows, wherever the members run: a served Triton, or this process."""
