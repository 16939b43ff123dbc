"""Options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

__all__ = [
    "BackendName",
    "BackendOption",
    "CheckpointOption",
    "DataDirOption",
    "DataName",
    "DataOption",
    "DtypeName",
    "DtypeOption",
    "EveryOption",
    "ImageSizeOption",
    "JsonOption",
    "MetricName",
    "ModelName",
    "OwnSamples",
    "PlotOption",
    "ResumeOption",
    "SamplesOption",
    "SaveOption",
    "SeedOption",
    "TestDataOption",
    "TestFractionOption",
    "chosen_checkpoints",
    "chosen_data",
]


BackendName = StrEnum("BackendName", ["auto", "numpy", "cupy"])
DtypeName = StrEnum("DtypeName", ["float32", "float64"])
DataName = StrEnum("DataName", ["auto", "cifar10", "synthetic"])
ModelName = StrEnum(
    "ModelName", {"softmax": "softmax", "svm": "svm", "two_layer": "two-layer", "knn": "knn"}
)
MetricName = StrEnum("MetricName", ["l2", "l1", "cosine"])

BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="Array library to compute with.")
]
DtypeOption = Annotated[DtypeName, typer.Option(help="Floats to compute in.")]
DataOption = Annotated[
    DataName,
    typer.Option(help="auto: CIFAR-10 if it is on disk, else synthetic; cifar10 may download."),
]
SamplesOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|PATH",
        help="auto: CIFAR-10 if it is on disk, else synthetic; cifar10 may download. Or a path of "
        "own samples: a folder with a folder of images a class, .npz, .npy, MNIST's IDX files, ...",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Of own images, each way; default 32 for pictures, else their own."),
]
TestDataOption = Annotated[
    Path | None, typer.Option(exists=True, help="Own samples to test on, as --data takes them.")
]
TestFractionOption = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=0.99, help="Of own samples that have no test part, to test on; default 0.2."
    ),
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
SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save", dir_okay=False, writable=True, help="Keep the model: predict, evaluate, load."
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Keep the last two checkpoints of the training here."),
]
EveryOption = Annotated[
    int | None, typer.Option(min=1, help="Epochs from one checkpoint to the next; default 1.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")
]
MetricOption = Annotated[MetricName | None, typer.Option(help="knn only; default l2.")]


class OwnSamples(NamedTuple):
    """What the options say of samples that :func:`gpuclf.datasets.load_samples` reads."""

    path: Path
    size: int | None
    test_data: Path | None
    test_fraction: float | None


def chosen_data(
    data: str,
    data_dir: Path | None,
    image_size: int | None,
    test_data: Path | None,
    test_fraction: float | None,
) -> DataName | OwnSamples:
    """Return the data set that ``--data`` names or where own samples lie."""
    given = {"image-size": image_size, "test-data": test_data, "test-fraction": test_fraction}
    if data in list(DataName):
        for option, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"--{option} is for own samples; --data is {data}")
        return DataName(data)
    if not Path(data).expanduser().exists():
        raise typer.BadParameter(
            f"--data must be {', '.join(DataName)} or the path of own samples; there is no {data}"
        )
    if data_dir is not None:
        raise typer.BadParameter("--data-dir is the folder of CIFAR-10; --data names own samples")
    if test_data is not None and test_fraction is not None:
        raise typer.BadParameter("give --test-data or --test-fraction, not both")
    return OwnSamples(Path(data), image_size, test_data, test_fraction)


def chosen_checkpoints(
    model: ModelName, folder: Path | None, every: int | None, resume: bool
) -> dict[str, Any]:
    """Return what ``fit`` is told of checkpoints."""
    if folder is None:
        for option, is_given in (("every", every is not None), ("resume", resume)):
            if is_given:
                raise typer.BadParameter(f"--{option} needs --checkpoint, the folder of them")
        return {}
    if model is ModelName.knn:
        raise typer.BadParameter("--checkpoint does not apply to knn, which has no epochs")
    return {"checkpoint": folder, "checkpoint_every": every or 1, "resume": resume}
