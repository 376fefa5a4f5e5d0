"""Stored rows of every kind, read in the same way for every command."""
