"""``gpuclf info``: versions and devices."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gpuclf.cli import options, output
from gpuclf.cli.warming import compile_ahead

__all__ = ["info"]


def info(
    json: options.JsonOption = None,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up", help="Compile now what the CPU's models of ten classes will need."
        ),
    ] = False,
) -> None:
    """Show versions, devices, BLAS and its threads, and why there is no GPU if there is none."""
    from gpuclf.devices.machine import environment
    from gpuclf.kernels.building.machine_code import vector_unit

    output.prepare(json)
    if warm_up:
        compile_ahead()
    found = environment() | {"compiled_for": vector_unit()}
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, version in found["versions"].items():
        table.add_row(name, version)
    table.add_row("Python", f"{found['python']} on {found['platform']}")
    cpu = f"{found['cpu']}, {found['cpu_count']} usable, L2 {found['cpu_l2_bytes'] >> 10:,} KiB"
    table.add_row("CPU", cpu)
    if found["memory_bytes"]:
        table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    for blas in found["blas"]:
        line = f"{blas['library']} {blas['version']}, {blas['threads']} threads"
        table.add_row("BLAS", line + (f", {blas['architecture']}" if blas["architecture"] else ""))
    if "numba" not in found["versions"]:
        table.add_row("compiled", escape("no: pip install numba"))
    else:
        table.add_row("compiled", f"for {found['compiled_for']}")
    gpu = found["gpu"]
    table.add_row("GPU", escape(gpu["reason"]))
    if gpu["usable"]:
        count = f", {gpu['multiprocessors']} multiprocessors" if gpu["multiprocessors"] else ""
        table.add_row("", f"compute capability {gpu['compute_capability']}{count}")
        if gpu["devices"] > 1:
            others = f"device {gpu['number']} of {gpu['devices']}: arrays go to the current one"
            table.add_row("", f"{others} (CUDA_VISIBLE_DEVICES, or cupy.cuda.Device(n).use())")
        free, total = gpu["memory_free_bytes"] / 2**30, gpu["memory_bytes"] / 2**30
        table.add_row("", f"{free:.1f} of {total:.1f} GiB free, L2 {gpu['l2_bytes'] >> 20} MiB")
        table.add_row("", f"CUDA driver {gpu['cuda_driver']}, runtime {gpu['cuda_runtime']}")
    else:
        table.add_row("", escape(f"to use one, {gpu['remedy']}"))
    output.console.print(table)
    output.write(json, found, names_machine=True)
