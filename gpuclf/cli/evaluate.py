"""``gpuclf evaluate``: how good a kept model is on labelled samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from gpuclf.cli import options, output
from gpuclf.cli.applying import (
    ModelArgument,
    Scores,
    as_trained,
    class_names,
    image_shape_of,
    score,
)

__all__ = ["evaluate"]

MOST_CLASSES = 20  # of a confusion matrix that is printed
N_NAMED, N_DRAWN = 5, 40  # mistakes


def evaluate(
    model: ModelArgument,
    data_name: options.SamplesOption = "auto",
    data_dir: options.DataDirOption = None,
    backend: options.BackendOption = options.BackendName.auto,
    json: options.JsonOption = None,
    plot: options.PlotOption = None,
) -> None:
    """Report accuracy, precision and recall, the confusion matrix, calibration, worst mistakes.

    Evaluated is the part for testing: the data's own, or what training on the same data kept for
    it; all samples, where they are others than it was trained on.
    """
    import numpy as np

    import gpuclf
    from gpuclf.evaluation import calibration, confusion_matrix

    output.prepare_picture(plot)
    output.prepare(json, plot=plot)
    data = options.chosen_data(data_name, data_dir, None, None, None)
    kept = gpuclf.load(model)
    known = getattr(kept, "training_", {})
    if data == options.DataName.auto and "test_fraction" in known.get("split", {}):
        raise typer.BadParameter(
            f"the model was trained on own samples ({known['dataset']['source']}): name them, or "
            "others, by --data"
        )
    dataset, X, y, part = _read(kept, data, data_dir)
    names = class_names(kept)
    targets = _targets(kept, y, dataset, names)
    output.say(f"data: {dataset.source}, {part} ({len(y):,} samples)")

    found = score(kept, X, backend)
    predicted = found.ranked[:, 0]
    counts = confusion_matrix(targets, predicted, len(names))
    accuracy = float(np.mean(predicted == targets))
    output.say(f"accuracy {accuracy:.4f}")
    content: dict[str, Any] = {
        "model": str(model),
        "dataset": output.describe(dataset) | {"part": part},
        "samples": len(y),
        "accuracy": accuracy,
        "classes": _report_classes(names, counts),
        "confusion_matrix": counts.tolist(),
    }
    _report_confusion(names, counts)
    if found.what == "probability":
        content["calibration"] = _report_calibration(calibration(found.values, targets))
    content["mistakes"] = mistakes = _worst_mistakes(found, targets, names)
    for mistake in mistakes[:N_NAMED]:
        value = f" ({found.what} {mistake[found.what]:.3f})" if found.what in mistake else ""
        wrong = f"{mistake['true']} was taken for {mistake['predicted']}"
        output.say(f"mistake: sample {mistake['sample']}: {wrong}{value}")
    if plot is not None:
        _draw(plot, dataset.image_shape, X, targets, predicted, names, mistakes)
    output.write(json, content)


def _read(model: Any, data: Any, data_dir: Path | None) -> tuple[Any, Any, Any, str]:
    """Return the data set, the samples and labels to evaluate on, and which they are."""
    from gpuclf.datasets.image_folder import looks_like_image_folder
    from gpuclf.datasets.own_samples import read_samples
    from gpuclf.datasets.splitting import with_test_part
    from gpuclf.saving.checkpoints import fingerprint

    training = getattr(model, "training_", {})
    split = training.get("split", {})
    shape = image_shape_of(model)
    if isinstance(data, options.DataName):
        dataset = output.load(data, data_dir, split.get("seed", 0))
    else:
        # Pictures have many sizes, so they are decoded at that of the model.
        path = data.path.expanduser()
        is_pictures = path.is_dir() and looks_like_image_folder(path)
        dataset = read_samples(path, shape[1:] if shape and is_pictures else None)
    given, where = dataset.image_shape, dataset.source
    dataset = dataset._replace(
        X_train=as_trained(model, dataset.X_train, given, where),
        X_test=as_trained(model, dataset.X_test, given, where),
        image_shape=given and (shape or given),
    )
    if len(dataset.X_test):
        return dataset, dataset.X_test, dataset.y_test, "its test part"
    known = training.get("data_sha256", {}).get("test")
    try:
        again = with_test_part(dataset, split.get("test_fraction"), split.get("seed", 0))
    except ValueError:  # too few to split
        again = dataset
    if len(again.X_test) and known == fingerprint(again.X_test, again.y_test):
        return again, again.X_test, again.y_test, "not trained on"
    return dataset, dataset.X_train, dataset.y_train, "all of it"


def _targets(model: Any, y: Any, dataset: Any, names: list[str]) -> Any:
    """Return the number of each label's class in the model."""
    import numpy as np

    from gpuclf.datasets.labels import labels_by_name

    theirs = dataset.class_names or [str(k) for k in range(int(y.max()) + 1)]
    has_names = hasattr(model, "class_names_") or model.classes_.dtype.kind not in "iu"
    if not has_names and np.isin(y, model.classes_).all():
        return np.searchsorted(model.classes_, y)
    return labels_by_name(y, theirs, names, dataset.source)


def _report_classes(names: list[str], counts: Any) -> list[dict[str, Any]]:
    import numpy as np

    from gpuclf.evaluation import precision_and_recall

    table = output.table("classes", "samples", "precision", "recall", left=("class",))
    rows = []
    for name, n, *shares in zip(
        names, counts.sum(axis=1).tolist(), *precision_and_recall(counts), strict=True
    ):
        precision, recall = (None if np.isnan(share) else float(share) for share in shares)
        rows.append({"class": name, "samples": n, "precision": precision, "recall": recall})
        shown = ("-" if share is None else f"{share:.4f}" for share in (precision, recall))
        table.add_row(escape(name), f"{n:,}", *shown)
    output.console.print(table)
    return rows


def _report_confusion(names: list[str], counts: Any) -> None:
    if len(names) > MOST_CLASSES:
        output.say(f"the confusion matrix of {len(names)} classes is in --json and --plot")
        return
    table = output.table("true class, by predicted class", *map(escape, names), left=("",))
    for name, row in zip(names, counts.tolist(), strict=True):
        table.add_row(escape(name), *(f"{n:,}" for n in row))
    output.console.print(table)


def _report_calibration(found: Any) -> dict[str, Any]:
    title = f"calibration, expected error {found.error:.4f}"
    table = output.table(title, "probability", "samples", "mean probability", "accuracy")
    bins = []
    for m, n in enumerate(found.count.tolist()):
        if not n:
            continue
        low, high = (float(edge) for edge in found.edges[m : m + 2])
        confidence, accuracy = float(found.confidence[m]), float(found.accuracy[m])
        row = {"above": low, "up_to": high, "samples": n}
        bins.append(row | {"mean_probability": confidence, "accuracy": accuracy})
        table.add_row(f"{low:.1f} to {high:.1f}", f"{n:,}", f"{confidence:.4f}", f"{accuracy:.4f}")
    output.console.print(table)
    return {"expected_error": found.error, "bins": bins}


def _worst_mistakes(found: Scores, targets: Any, names: list[str]) -> list[dict[str, Any]]:
    """Return the mistakes, those first in which the wrong class is the furthest ahead."""
    import numpy as np

    predicted = found.ranked[:, 0]
    wrong = np.flatnonzero(predicted != targets)
    lead = found.values[wrong, predicted[wrong]] - found.values[wrong, targets[wrong]]
    order = wrong[np.argsort(-lead, kind="stable")]
    return [
        {"sample": int(i), "true": names[targets[i]], "predicted": names[predicted[i]]}
        | ({} if found.what == "vote" else {found.what: float(found.values[i, predicted[i]])})
        for i in order
    ]


def _draw(
    path: Path, image_shape: Any, X: Any, targets: Any, predicted: Any, names: list[str],
    mistakes: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Draw the worst mistakes; the confusion matrix of samples that are no images."""
    from gpuclf.plots import plot_confusion_matrix, plot_samples

    worst = [mistake["sample"] for mistake in mistakes[:N_DRAWN]]
    if worst and image_shape is not None:
        ax = plot_samples(X[worst], targets[worst], predicted[worst], names, image_shape)
        ax.set_title(f"the worst of {len(mistakes):,} mistakes", loc="left", fontsize="medium")
    else:
        ax = plot_confusion_matrix(targets, predicted, names)
    figure: Any = ax.figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    output.say(f"drawn to {path}")
