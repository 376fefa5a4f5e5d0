"""The `committee` command: one module per command, put together in app.py."""
