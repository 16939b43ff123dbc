"""``gpuclf bench``: the measured ladder."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuclf.cli import output
from gpuclf.cli.options import (
    BackendName,
    BackendOption,
    DataDirOption,
    DataName,
    DataOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    SeedOption,
)

__all__ = ["bench"]


def bench(
    backend: BackendOption = BackendName.auto,
    dtype: DtypeOption = DtypeName.float32,
    data: DataOption = DataName.auto,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    samples: Annotated[
        int | None, typer.Option(min=200, help="Use this many training images; default all.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Compare with scikit-learn, PyTorch and JAX instead (CPU)."),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Measure the ladder: naive loops, textbook NumPy, this library on NumPy and on CuPy."""
    from gpuclf.backend import environment, get_backend
    from gpuclf.benchmark import (
        IMPLEMENTATIONS,
        PEERS,
        Inputs,
        Row,
        default_cases,
        peer_cases,
        run_case,
    )
    from gpuclf.benchmark.report import print_rows, write_json

    output.prepare(json)
    if backend is BackendName.cupy:
        get_backend("cupy")  # where it was asked for by name, "not run" would be no answer
    listed = [i for i in IMPLEMENTATIONS if backend != "numpy" or i.array_library != "cupy"]
    if peers:
        listed = [i for i in listed if not i.extrapolated] + PEERS
    rows: list[Row] = []
    with output.progress() as progress:
        task = progress.add_task("preparing the data", total=None)
        dataset = output.load(data, data_dir, seed)
        n_samples = min(samples or len(dataset.X_train), len(dataset.X_train))
        inputs = Inputs(dataset.X_train[:n_samples], dataset.y_train[:n_samples], dtype, seed)
        cases = peer_cases(n_samples) if peers else default_cases(n_samples)
        progress.update(task, total=len(cases) * len(listed))
        for case in cases:
            rows += run_case(
                case,
                inputs,
                listed,
                lambda what: progress.update(task, description=what, advance=1),
            )
    found = environment()
    size = f"{n_samples:,} x {dataset.X_train.shape[1]:,}, {dtype}"
    output.say(f"data: {dataset.source}; {size}")
    output.say(f"machine: {output.machine_line(found)}")
    print_rows(rows, output.console)
    if json is not None:
        settings = {
            "dtype": dtype,
            "seed": seed,
            "samples": n_samples,
            "backend": backend,
            "peers": peers,
        }
        write_json(
            json,
            {
                "dataset": output.describe(dataset),
                "settings": settings,
                "environment": found,
                "rows": [row.as_dict() for row in rows],
            },
        )
        output.say(f"written to {json}")
