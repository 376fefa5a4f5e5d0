"""`python -m export`: trained models into members."""

from __future__ import annotations

import sys

import typer

from export.commands.digits import digits
from orchestrator.errors import CommitteeError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Trained models into members.")


@app.callback()
def main() -> None:
    """Trained models into members of a model repository."""


app.command()(digits)


def run() -> int:
    """Runs the command; an error a user can mend is one line."""
    try:
        app()
    except CommitteeError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run())
