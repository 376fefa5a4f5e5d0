"""Loads: what sends requests, and what it measured."""
