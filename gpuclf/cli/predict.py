"""``gpuclf predict``: the classes of images and arrays, by a kept model."""

from __future__ import annotations

import csv as csv_format
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuclf.cli import options, output
from gpuclf.cli.applying import (
    ModelArgument,
    Scores,
    as_trained,
    class_names,
    image_shape_of,
    score,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["predict"]

ARRAYS = (".npy", ".npz")


def predict(
    model: ModelArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            exists=True,
            show_default=False,
            help="Images, folders of images, arrays in .npy or .npz.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="So many classes each, the best first.")] = 1,
    backend: options.BackendOption = options.BackendName.auto,
    json: Annotated[
        Path | None,
        typer.Option("--json", dir_okay=False, help="Write predictions to this file; - to stdout."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", dir_okay=False, help="The same as comma-separated values."),
    ] = None,
) -> None:
    """Say the class of each image, and its probability (svm: its score).

    Images are resized and laid out as those that the model was trained on.
    """  # fmt: skip
    import gpuclf
    from gpuclf.files import write_whole

    output.prepare(json, csv=csv)
    kept = gpuclf.load(model)
    names, X, failed = _read(kept, inputs)
    found: list[dict[str, Any]] = []
    if names:
        found = _predictions(names, score(kept, X, backend), class_names(kept), top)
    for line in _lines(found):
        output.say(line)
    output.save(csv, lambda path: write_whole(path, _as_csv(found)))
    output.write(json, {"model": str(model), "predictions": found})
    for name, reason in failed:
        typer.echo(f"error: {name}: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


def _read(model: Any, inputs: list[Path]) -> tuple[list[str], Any, list[tuple[str, str]]]:
    """Return names and rows of all samples, and the files that cannot be read, with reasons."""
    import numpy as np

    from gpuclf.datasets.image_folder import images_below
    from gpuclf.datasets.rows import as_rows
    from gpuclf.datasets.stored_arrays import read_unlabelled

    names: list[str] = []
    blocks: list[np.ndarray] = []
    failed: list[tuple[str, str]] = []
    for path in inputs:
        if path.suffix.lower() in ARRAYS and path.is_file():
            array = read_unlabelled(path)
            # That of the training, where the array can have it.
            layout = getattr(model, "layout_", None)
            layout = layout if layout is not None and len(layout) == array.ndim else None
            rows, image_shape, _ = as_rows(array, layout, str(path))
            blocks.append(as_trained(model, rows, image_shape, str(path)))
            names += [f"{path}[{i}]" for i in range(len(rows))]
            continue
        pictures = images_below(path) if path.is_dir() else [path]
        if not pictures:
            raise ValueError(f"{path} has no images: PNG, JPEG, WebP and BMP are read")
        rows, unread = _decoded(model, pictures)
        failed += unread.values()
        kept = [i for i in range(len(pictures)) if i not in unread]
        names += [str(pictures[i]) for i in kept]
        blocks.append(as_trained(model, rows[kept], None, str(path)))
    return names, np.concatenate(blocks), failed


def _decoded(model: Any, pictures: list[Path]) -> tuple[Any, dict[int, tuple[str, str]]]:
    from gpuclf.datasets.decoding import decode

    shape = image_shape_of(model)
    if shape is None or shape[0] not in (1, 3):
        raise ValueError(
            f"the model was trained on rows of {model.n_features_in_:,} numbers, and does not say "
            "how they lie in an image of 1 or 3 channels: set "
            "model.image_shape_ = (channels, height, width) and save it again, or give arrays of "
            "such rows"
        )
    return decode(pictures, shape[1:], shape[0])


def _predictions(
    names: list[str], found: Scores, classes: list[str], top: int
) -> list[dict[str, Any]]:
    shown = [None] if found.what == "vote" else [found.what]
    rows = []
    for name, ranked, values in zip(names, found.ranked, found.values, strict=True):
        best = [
            {"class": classes[k]} | {what: float(values[k]) for what in shown if what}
            for k in ranked[:top].tolist()
        ]
        rows.append({"input": name} | best[0] | ({"top": best} if top > 1 else {}))
    return rows


def _lines(found: list[dict[str, Any]]) -> list[str]:
    """Return a line an input: its name, and classes with their probabilities or scores."""
    width = max((len(row["input"]) for row in found), default=0)
    lines = []
    for row in found:
        best = []
        for one in row.get("top", [row]):
            value = one.get("probability", one.get("score"))
            best.append(one["class"] + ("" if value is None else f" {value:.4f}"))
        lines.append(f"{row['input']:{width}}  {', '.join(best)}")
    return lines


def _as_csv(found: list[dict[str, Any]]) -> str:
    """Return a line an input; of several classes, those of the second have names with _2."""
    lines = [
        {"input": row["input"]}
        | {
            name if i == 0 else f"{name}_{i + 1}": value
            for i, best in enumerate(row.get("top", [row]))
            for name, value in best.items()
            if name in ("class", "probability", "score")
        }
        for row in found
    ]
    text = io.StringIO()
    columns = [*lines[0]] if lines else ["input", "class"]
    writer = csv_format.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
