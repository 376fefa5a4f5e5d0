"""The runtime inside Triton: a Python backend that holds the cascade and asks members through BLS.

Imports numpy and the standard library only; the server's own module is handed in, never imported.
"""
