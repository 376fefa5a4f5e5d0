"""Answering stored rows through a served model."""
