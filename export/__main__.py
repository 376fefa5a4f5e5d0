"""`python -m export`: trained models into members."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from export.commands.cost import cost
from export.commands.digits import digits
from export.commands.fuse import fuse
from export.commands.glyphs import glyphs, glyphs_data
from export.commands.member import member
from export.commands.onefile import onefile
from export.commands.precision import precision
from export.commands.prove import prove
from export.commands.show import show
from export.commands.tensorrt import tensorrt
from export.commands.zoo import zoo
from orchestrator.errors import CommitteeError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Trained models into members.")


@app.callback()
def main() -> None:
    """Trained models into members of a model repository."""


app.command()(digits)
app.command()(glyphs)
app.command("glyphs-data")(glyphs_data)
app.command()(member)
app.command()(onefile)
app.command()(show)
app.command()(tensorrt)
app.command()(precision)
app.command()(prove)
app.command()(fuse)
app.command("zoo")(zoo)
app.command("cost")(cost)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run() -> int:
    """Runs the command; an error a user can mend is one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # The same way out as Ctrl-C, so that nothing half-written stays behind whatever asks us to end.
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except CommitteeError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run())
