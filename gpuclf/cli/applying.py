"""A kept model and samples for it: what ``predict`` and ``evaluate`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gpuclf.cli.options import BackendName

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ModelArgument", "Scores", "as_trained", "class_names", "image_shape_of", "score"]

ModelArgument = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, show_default=False, help="What --save, or model.save, wrote."
    ),
]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey of colours


class Scores(NamedTuple):
    """What a model says of N samples.

    Attributes
    ----------
    ranked : ndarray of shape (N, C)
        Numbers of the classes, the best first.
    values : ndarray of shape (N, C)
        Of the classes in their own order.
    what : {"probability", "score", "vote"}
        What the values are.
    """

    ranked: np.ndarray
    values: np.ndarray
    what: str


def class_names(model: Any) -> list[str]:
    """Return the name of each class of a classifier, in the order of `classes_`."""
    names, labels = getattr(model, "class_names_", None), model.classes_.tolist()
    if names is None or not all(type(k) is int and 0 <= k < len(names) for k in labels):
        return [str(label) for label in labels]
    return [str(names[label]) for label in labels]


def image_shape_of(model: Any) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of what a model was trained on, if that is known."""
    shape = getattr(model, "image_shape_", None)
    return None if shape is None else tuple(shape)


def as_trained(
    model: Any, rows: np.ndarray, image_shape: tuple[int, int, int] | None, where: str
) -> np.ndarray:
    """Return rows of samples in the form that a model was trained on.

    Parameters
    ----------
    model : classifier
    rows : ndarray of shape (N, D)
    image_shape : (channels, height, width) or None
        Of the samples; None of rows of unknown shape.
    where : str
        The samples, for errors.

    Raises
    ------
    ValueError
        If they cannot be brought to that form.
    """
    import numpy as np

    from gpuclf.datasets.rows import as_bytes, resize_rows

    wanted = image_shape_of(model)
    if wanted is not None and hasattr(model, "training_"):
        rows = np.asarray(as_bytes(rows, where))  # as the command line trains on images
    if image_shape is not None and wanted is not None and image_shape != wanted:
        channels, height, width = image_shape
        planes = rows.reshape(len(rows), channels, height * width)
        if channels == 1:
            planes = np.repeat(planes, wanted[0], axis=1)
        elif channels == 3 and wanted[0] == 1:
            grey = np.einsum("c,ncp->np", LUMA, planes)
            planes = (np.rint(grey) if rows.dtype == np.uint8 else grey).astype(rows.dtype)
        elif channels != wanted[0]:
            raise ValueError(
                f"{where} has {channels} channels, the model was trained on {wanted[0]}; without "
                "alpha: images[..., :3]"
            )
        rows = planes.reshape(len(rows), -1)
        rows = np.asarray(resize_rows(rows, (wanted[0], height, width), wanted[1:]))
    if rows.shape[1] != model.n_features_in_:
        form = "" if wanted is None else f", images of {wanted} (channels, height, width)"
        if wanted is None and image_shape is not None:
            form = (
                ", of which it does not say how they lie in an image: set model.image_shape_ = "
                "(channels, height, width) and save it again"
            )
        raise ValueError(
            f"{where} has samples of {rows.shape[1]:,} numbers, the model was trained on "
            f"{model.n_features_in_:,}{form}"
        )
    return rows


def score(model: Any, X: np.ndarray, backend: BackendName) -> Scores:
    """Return what the model says of samples in its own form, computed on a backend."""
    import numpy as np

    from gpuclf import to_device, to_host
    from gpuclf.bench.measure.break_even import measured_break_even
    from gpuclf.devices.backends import get_backend
    from gpuclf.estimators.gradient_classifier import GradientClassifier
    from gpuclf.losses import softmax

    break_even = measured_break_even() if backend == "auto" else None
    where = get_backend(backend, nbytes=X.nbytes, break_even=break_even)
    if isinstance(model, GradientClassifier):
        # Ranked by score: of probabilities, several may round to 0.
        scores = np.asarray(to_host(model.class_scores(to_device(X, where))))
        ranked = np.argsort(-scores, axis=1, kind="stable")
        if model.model.has_logits:
            return Scores(ranked, np.asarray(softmax(scores)), "probability")
        return Scores(ranked, scores, "score")
    model = to_device(model, where)
    if hasattr(model, "predict_proba"):
        shares = np.asarray(to_host(model.predict_proba(to_device(X, where))))
        return Scores(np.argsort(-shares, axis=1, kind="stable"), shares, "probability")
    numbers = np.searchsorted(model.classes_, to_host(model.predict(X)))
    votes = np.eye(len(model.classes_))[numbers]
    return Scores(np.argsort(-votes, axis=1, kind="stable"), votes, "vote")
