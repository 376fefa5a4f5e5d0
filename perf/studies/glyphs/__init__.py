"""Glyphs: a data set drawn from fonts, and a family of networks trained on it."""

from pathlib import Path

# The committed members, apart from those that are served by default, which they would slow down.
REPOSITORY = Path("perf/glyphs/model_repository")
