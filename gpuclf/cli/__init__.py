"""The command line: one module for each command."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

from gpuclf.cli import output
from gpuclf.cli.bench import bench
from gpuclf.cli.check import check
from gpuclf.cli.evaluate import evaluate
from gpuclf.cli.info import info
from gpuclf.cli.predict import predict
from gpuclf.cli.runs import runs
from gpuclf.cli.search import search
from gpuclf.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from gpuclf import __version__

        output.say(f"gpuclf {__version__}")
        raise typer.Exit


@app.callback()
def gpuclf(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train and benchmark the classic image classifiers on NumPy and CuPy."""


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of pydantic, says nothing
            raise


for command in (bench, train, search, predict, evaluate, runs, check, info):
    app.command(cls=_Command)(command)


def main() -> None:
    """Run the command line; expected errors end in one line, not in a traceback."""
    from gpuclf.devices.backends import BackendUnavailableError

    # Why there is no GPU stands in the output; the library's log line would say it twice.
    logging.getLogger("gpuclf").setLevel(logging.ERROR)
    logging.getLogger("gpuclf.kernels.building").setLevel(logging.WARNING)  # it takes seconds
    try:
        app()
    except (
        BackendUnavailableError,
        FloatingPointError,
        ImportError,
        MemoryError,
        OSError,
        ValueError,
    ) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        raise SystemExit(1) from None
