"""The command line: one module for each command."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from gpuclf import interrupts
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

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and see to what was interrupted or could not be written."""
        output.begin()
        try:
            super().invoke(ctx)
            interrupts.check()
        except KeyboardInterrupt:
            self._end_interrupted()
        except Exception:
            # An import or a callback that is broken off may end as another error.
            if interrupts.received() is None:
                raise
            self._end_interrupted()
        if output.has_failed():
            raise typer.Exit(1)

    def _end_interrupted(self) -> None:
        interrupts.acknowledge()
        output.keep_finished()
        raise typer.Exit(interrupts.exit_code())


for command in (bench, train, search, predict, evaluate, runs, check, info):
    app.command(cls=_Command)(command)


def main() -> None:
    """Run the command line; expected errors end in one line, not in a traceback."""
    logger = logging.getLogger("gpuclf")
    level = logger.level
    with interrupts.heard():
        # Why there is no GPU stands in the output; the library's log line would say it twice.
        logger.setLevel(logging.ERROR)
        logging.getLogger("gpuclf.kernels.building").setLevel(logging.WARNING)  # it takes seconds
        try:
            with warnings.catch_warnings():
                # Of no use here are the place in the code and its line.
                warnings.showwarning = lambda message, *_, **__: output.complain(
                    str(message), "warning"
                )
                _main()
        finally:
            logger.setLevel(level)


def _main() -> None:
    from gpuclf.devices.backends import BackendUnavailableError

    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:  # help, too, is written to whatever encoding there is
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")
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
        if interrupts.received() is not None:
            raise
        output.complain(str(error))
        raise SystemExit(1) from None
