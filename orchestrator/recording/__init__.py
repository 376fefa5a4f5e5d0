"""Asking members about rows, resumable, and joining records."""
