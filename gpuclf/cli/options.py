"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BackendName",
    "BackendOption",
    "DataDirOption",
    "DataName",
    "DataOption",
    "DtypeName",
    "DtypeOption",
    "JsonOption",
    "MetricName",
    "ModelName",
    "PlotOption",
    "SeedOption",
    "refuse_foreign",
]


class BackendName(StrEnum):
    """Values of --backend."""

    auto = "auto"
    numpy = "numpy"
    cupy = "cupy"


class DtypeName(StrEnum):
    """Values of --dtype."""

    float32 = "float32"
    float64 = "float64"


class DataName(StrEnum):
    """Values of --data."""

    auto = "auto"
    cifar10 = "cifar10"
    synthetic = "synthetic"


class ModelName(StrEnum):
    """What can be trained and searched for."""

    softmax = "softmax"
    svm = "svm"
    two_layer = "two-layer"
    knn = "knn"


class MetricName(StrEnum):
    """Values of --metric."""

    l2 = "l2"
    l1 = "l1"


BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="Array library to compute with.")
]
DtypeOption = Annotated[DtypeName, typer.Option(help="Floats to compute in.")]
DataOption = Annotated[
    DataName,
    typer.Option(help="auto: CIFAR-10 if it is on disk, else synthetic; cifar10 may download."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder of CIFAR-10; else $GPUCLF_DATA, else a cache folder.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", dir_okay=False, writable=True, help="Write the result to this file."),
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", dir_okay=False, writable=True, help="Draw the result to this file."),
]


def refuse_foreign(model: ModelName, given: Iterable[str], allowed: Container[str]) -> None:
    """Raise for the first hyper-parameter that was given but does not apply to the model."""
    for name in given:
        if name not in allowed:
            option = "epochs" if name == "max_iter" else name.replace("_", "-")
            raise typer.BadParameter(f"--{option} does not apply to {model}")
