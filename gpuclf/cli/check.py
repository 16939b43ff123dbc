"""``gpuclf check``: every gradient against centred differences."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from gpuclf.cli import options, output

__all__ = ["check"]


CheckedModel = StrEnum(
    "CheckedModel", {"all": "all", "softmax": "softmax", "svm": "svm", "two_layer": "two-layer"}
)
LibraryName = StrEnum(
    "LibraryName",
    {"numpy": "numpy", "cupy": "cupy", "torch": "torch", "array_api_strict": "array-api-strict"},
)


def check(
    model: Annotated[CheckedModel, typer.Argument(help="What to check.")] = CheckedModel.all,
    backend: options.BackendOption = options.BackendName.auto,
    library: Annotated[
        LibraryName | None, typer.Option(help="Array library to use instead of --backend's.")
    ] = None,
    dtype: options.DtypeOption = options.DtypeName.float64,
    seed: options.SeedOption = 0,
    json: options.JsonOption = None,
) -> None:
    """Check every gradient, that of X included, against centred differences in float64."""
    from gpuclf.arrays import describe_location
    from gpuclf.models import MODELS, gradients

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
            found[name] = gradients.check_model(
                MODELS[name], like=like, dtype=str(dtype), seed=seed
            )
            progress.advance(task)
    passed = all(result.passed for of_model in found.values() for result in of_model.values())

    where = describe_location(like)
    output.say(f"analytic gradients in {dtype} on {where}, tolerance {gradients.RTOL[dtype]:.0e}")
    output.console.print(_table(found))
    rows = [
        {"model": name, "gradient": parameter, "passed": result.passed, **asdict(result)}
        for name, of_model in found.items()
        for parameter, result in of_model.items()
    ]
    settings = {"library": where, "dtype": dtype, "seed": seed}
    output.write(json, {"passed": passed, "settings": settings, "rows": rows})
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
            raise BackendUnavailableError(f"{name} is not installed: pip install {name}") from None
        return xp.asarray(np.zeros(1))
    return to_device(np.zeros(1), get_backend(name))


def _table(found: dict[str, dict[str, Any]]) -> Table:
    columns = ("relative error", "checked", "at kinks", "result")
    table = output.table("gradient checks", *columns, left=("model", "gradient of", "worst at"))
    for name, of_model in found.items():
        for parameter, result in of_model.items():
            index = list(result.worst[1]) if result.worst is not None else "-"
            passed = "[green]passed[/]" if result.passed else "[red]failed[/]"
            error, counts = f"{result.max_relative_error:.1e}", (result.n_checked, result.n_kinks)
            table.add_row(name, parameter, str(index), error, *map(str, counts), passed)
        table.add_section()
    return table
