"""``gpuclf runs``: trainings compared, from the files that ``train --log`` wrote."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from gpuclf.cli import options, output
from gpuclf.files import format_seconds

__all__ = ["read_log", "runs"]

# What is no choice of the one who trained, or the same in all that are compared.
_NO_SETTINGS = ("backend",)


def runs(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="With the files of train --log."
        ),
    ] = Path(),
    json: options.JsonOption = None,
    plot: options.PlotOption = None,
) -> None:
    """Compare trainings: a table, the best validation accuracy first, and a picture."""
    output.prepare_picture(plot)
    output.prepare(json, plot=plot)
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        run = read_log(path)
        if run is not None:
            found[path.relative_to(folder).with_suffix("").as_posix()] = run
    if not found:
        raise ValueError(f"{folder} has no log of a training: gpuclf train --log FILE.jsonl")
    order = sorted(found, key=lambda name: found[name]["val_accuracy"] or -1, reverse=True)
    found = {name: found[name] for name in order}
    output.console.print(_table(found))
    data = {run["data_sha256"] for run in found.values()}
    if len(data) > 1:
        output.say(f"the trainings saw {len(data)} different data sets: compare within each")
    if plot is not None:
        _draw(plot, found)
    output.write(json, {"runs": [{"name": name} | run for name, run in found.items()]})


def read_log(path: Path) -> dict[str, Any] | None:
    """Return what a log says of its training, or None if the file is none.

    A line that is cut off, as of a process that was killed, is passed over.
    """
    lines = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json_format.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and isinstance(line.get("event"), str):
                lines.append(line)
            if not lines or lines[0]["event"] != "start":
                return None  # some other file of JSON lines, which may be long
    if not lines:
        return None
    start, last = lines[0], lines[-1]
    epochs = [line for line in lines if line["event"] == "epoch"]
    result = last if last["event"] == "result" else {}
    state = {"result": "finished", "failure": "failed"}.get(last["event"], "unfinished")
    accuracies = [line.get("val_accuracy") for line in epochs]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return {
        "model": start.get("model"),
        "data": start.get("dataset", {}).get("name"),
        "data_sha256": start.get("data_sha256", {}).get("train"),
        "date": start.get("date"),
        "command": start.get("command"),
        "settings": start.get("settings", {}),
        "state": state,
        "error": last.get("error"),
        "epochs": len(epochs),
        "seconds": last.get("seconds"),
        "loss_history": [line.get("loss") for line in epochs],
        "val_accuracy_history": accuracies,
        "val_accuracy": result.get("val_accuracy", known[-1] if known else None),
        "test_accuracy": result.get("test_accuracy"),
    }


def _table(found: dict[str, dict[str, Any]]) -> Any:
    differing = _differing([run["settings"] for run in found.values()])
    columns = ("validation", "test", "epochs", "time", *(n.replace("_", " ") for n in differing))
    table = output.table("trainings, by validation accuracy", *columns, left=("run", "model", "on"))
    for column in table.columns[:3]:  # names may be broken, numbers may not
        column.no_wrap, column.overflow = False, "fold"
    for name, run in found.items():
        accuracies = (
            "-" if run[part] is None else f"{run[part]:.4f}"
            for part in ("val_accuracy", "test_accuracy")
        )
        seconds = "-" if run["seconds"] is None else format_seconds(run["seconds"])
        state = "" if run["state"] == "finished" else f" ({run['state']})"
        settings = (_shown(run["settings"].get(key)) for key in differing)
        left = (name + state, str(run["model"]), str(run["data"]))
        table.add_row(
            *map(escape, left), *accuracies, str(run["epochs"]), seconds, *map(escape, settings)
        )
    return table


def _differing(settings: list[dict[str, Any]]) -> list[str]:
    """Return the names of the settings that are not the same in all that have them."""
    names = dict.fromkeys(name for one in settings for name in one if name not in _NO_SETTINGS)
    return [
        name
        for name in names
        if len({json_format.dumps(one[name]) for one in settings if name in one}) > 1
    ]


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    from gpuclf.plots import plot_runs

    lines = {name: run["val_accuracy_history"] for name, run in found.items()}
    ax: Any = plot_runs({name: v for name, v in lines.items() if None not in v})
    path.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(path, dpi=150)
    output.say(f"drawn to {path}")
