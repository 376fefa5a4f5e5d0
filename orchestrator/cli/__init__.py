"""The `committee` command: one module per command, listed by `COMMANDS` in `orchestrator/__main__.py`.

A command, its module and the module's function have one name.
"""
