"""Loads: the senders of requests, and the window of figures each of them returns."""
