"""Measuring what is served: every route of a repository under load, in one run."""
