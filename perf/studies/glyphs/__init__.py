"""Glyphs: a data set drawn from fonts, and a family of networks trained on it."""
