"""`python -m export`: trained models into members."""

import sys

import typer

from export.commands.derived import fuse, onefile, precision, tensorrt
from export.commands.deriving import image_decoder, tokenizer
from export.commands.member import member
from export.commands.show import cost, prove, show
from export.commands.zoo import zoo
from orchestrator.commandline import HandsOn, interrupt_on_signals, new_program, run_program
from orchestrator.errors import ExportError

app = new_program("export", "Trained models into members of a model repository.")


@app.callback()
def main() -> None:
    """Trained models into members of a model repository."""


def moved(context: typer.Context) -> None:
    """Says where a command has gone."""
    raise ExportError(
        f"export {context.info_name}",
        got="a command that has moved",
        fix=f"run `python -m perf {context.info_name}`",
    )


for name in ("digits", "glyphs", "glyphs-data"):
    # The training of this project's own members; its options are read there.
    app.command(name, cls=HandsOn, hidden=True, help=f"Moved to `python -m perf {name}`.")(moved)

for command in (member, tokenizer, image_decoder, onefile, show, tensorrt, precision, prove, fuse, zoo, cost):
    app.command()(command)


def run() -> int:
    """Runs the command line of this process; an error a user can mend is one line."""
    interrupt_on_signals()
    return run_program(typer.main.get_command(app), "python -m export")


if __name__ == "__main__":
    sys.exit(run())
