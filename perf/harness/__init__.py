"""What every study of `perf` is built on: cells, windows, rounds, results and reports."""
