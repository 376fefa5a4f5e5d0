"""Members merged into one graph: a stage with its average."""
