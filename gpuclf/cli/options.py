"""Options that several commands take."""

from __future__ import annotations

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
]


BackendName = StrEnum("BackendName", ["auto", "numpy", "cupy"])
DtypeName = StrEnum("DtypeName", ["float32", "float64"])
DataName = StrEnum("DataName", ["auto", "cifar10", "synthetic"])
ModelName = StrEnum(
    "ModelName", {"softmax": "softmax", "svm": "svm", "two_layer": "two-layer", "knn": "knn"}
)
MetricName = StrEnum("MetricName", ["l2", "l1"])

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
MetricOption = Annotated[MetricName | None, typer.Option(help="knn only; default l2.")]
