"""``gpuclf check``: every gradient against centred differences."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from gpuclf.cli import output
from gpuclf.cli.options import (
    BackendName,
    BackendOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    SeedOption,
)

__all__ = ["check"]


class CheckedModel(StrEnum):
    """What `gpuclf check` can check."""

    all = "all"
    softmax = "softmax"
    svm = "svm"
    two_layer = "two-layer"


class LibraryName(StrEnum):
    """Values of --library."""

    numpy = "numpy"
    cupy = "cupy"
    torch = "torch"
    array_api_strict = "array-api-strict"


def check(
    model: Annotated[CheckedModel, typer.Argument(help="What to check.")] = CheckedModel.all,
    backend: BackendOption = BackendName.auto,
    library: Annotated[
        LibraryName | None, typer.Option(help="Array library to use instead of --backend's.")
    ] = None,
    dtype: DtypeOption = DtypeName.float64,
    seed: SeedOption = 0,
    json: JsonOption = None,
) -> None:
    """Check every gradient, that of X included, against centred differences in float64."""
    from gpuclf.arrays import describe_location
    from gpuclf.devices.machine import environment
    from gpuclf.files import write_json
    from gpuclf.models.gradients import MODELS, RTOL, check_model

    output.prepare(json)
    if library is not None and backend not in ("auto", library):
        raise typer.BadParameter(f"--library {library} and --backend {backend}: give one of them")
    like = _array_of(library or backend)
    names = list(MODELS) if model is CheckedModel.all else [str(model)]
    with output.progress() as progress:
        task = progress.add_task("checking", total=len(names))
        found = {}
        for name in names:
            progress.update(task, description=f"checking {name}")
            found[name] = check_model(MODELS[name], like=like, dtype=str(dtype), seed=seed)
            progress.advance(task)
    passed = all(result.passed for of_model in found.values() for result in of_model.values())

    where = describe_location(like)
    output.say(f"analytic gradients in {dtype} on {where}, tolerance {RTOL[dtype]:.0e}")
    output.console.print(_table(found))
    if json is not None:
        rows = [
            {"model": name, "gradient": parameter, "passed": result.passed, **asdict(result)}
            for name, of_model in found.items()
            for parameter, result in of_model.items()
        ]
        settings = {"library": where, "dtype": dtype, "seed": seed}
        write_json(
            json,
            {"passed": passed, "settings": settings, "environment": environment(), "rows": rows},
        )
        output.say(f"written to {json}")
    if not passed:
        raise typer.Exit(1)


def _array_of(name: str) -> Any:
    """Return an array of the library that the options name."""
    import numpy as np

    from gpuclf.devices.backends import BackendUnavailableError, get_backend, to_device

    if name in ("torch", "array-api-strict"):
        try:
            xp = importlib.import_module(name.replace("-", "_"))
        except ImportError:
            extra = "bench" if name == "torch" else "test"
            raise BackendUnavailableError(
                f"{name} is not installed: pip install 'gpuclf[{extra}]'"
            ) from None
        return xp.asarray(np.zeros(1))
    return to_device(np.zeros(1), get_backend(name))


def _table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="gradient checks", title_justify="left", title_style="bold")
    for column in ("model", "gradient of", "worst at"):
        table.add_column(column, no_wrap=True)
    for column in ("relative error", "checked", "at kinks"):
        table.add_column(column, justify="right")
    table.add_column("result")
    for name, of_model in found.items():
        for parameter, result in of_model.items():
            index = list(result.worst[1]) if result.worst is not None else "-"
            table.add_row(
                name,
                parameter,
                str(index),
                f"{result.max_relative_error:.1e}",
                f"{result.n_checked}",
                f"{result.n_kinks}",
                "[green]passed[/]" if result.passed else "[red]failed[/]",
            )
        table.add_section()
    return table
