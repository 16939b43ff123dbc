"""What is kept of a training: how it was called, its epochs in a file, and the model."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from gpuclf.cli import output
from gpuclf.cli.options import OwnSamples

__all__ = ["Log", "described", "keep_model", "logging_to"]


def described(model: str, dataset: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a training what it is, as JSON has it.

    Parameters
    ----------
    model : str
    dataset : ImageDataset
    settings : dict
        Hyper-parameters and what else was chosen.

    Returns
    -------
    dict
        With the command, the date, and a digest of the data: two trainings with the same one saw
        the same numbers.
    """
    from gpuclf.saving.checkpoints import fingerprint

    X_train, y_train, X_test, y_test = dataset
    digests = {"train": fingerprint(X_train, y_train), "test": fingerprint(X_test, y_test)}
    return {
        "command": shlex.join(["gpuclf", *sys.argv[1:]]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": str(model),
        "dataset": output.describe(dataset),
        "data_sha256": digests,
        "settings": settings,
    }


class Log:
    """A file of JSON lines: what was begun, a line an epoch, and the result.

    Each line is in the file as soon as it is known, so that a training can be watched, and what
    was done until a failure stays. Where the file cannot be written any more (a full disk, a pipe
    that nobody reads), that is said, and the training goes on.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file, self._start, self._n_epochs = file, time.perf_counter(), 0

    @property
    def is_whole(self) -> bool:
        """Whether there is a file, and all was written to it."""
        return self._file is not None

    def write(self, event: str, content: dict[str, Any]) -> None:
        """Add a line; `event` is "start", "epoch", "result" or "failure"."""
        if self._file is None:
            return
        seconds = round(time.perf_counter() - self._start, 3)
        line = {"event": event, "seconds": seconds} | content
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            output.lose(Path(self._file.name), error)
            with suppress(OSError):  # it tries again to write what could not be written
                self._file.close()
            self._file = None

    def write_epoch(self, epoch: int, history: Any) -> None:
        """Add the lines of the epochs so far that have none; a resumed training has several."""
        n_steps = max(1, len(history.loss) // epoch)
        for one in range(self._n_epochs + 1, epoch + 1):
            recent = history.loss[(one - 1) * n_steps : one * n_steps]
            content = {"epoch": one, "loss": sum(recent) / len(recent)}
            if history.learning_rate:
                content["learning_rate"] = history.learning_rate[one * n_steps - 1]
            for name in ("val_accuracy", "train_accuracy"):
                if values := getattr(history, name):
                    content[name] = values[one - 1]
            self.write("epoch", content)
        self._n_epochs = epoch


@contextmanager
def logging_to(path: Path | None) -> Iterator[Log]:
    """Open a log, an older file of that name being replaced; without a path nothing is written."""
    if path is None:
        yield Log(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        log = Log(file)
        try:
            yield log
        except BaseException as error:
            log.write("failure", {"error": f"{type(error).__name__}: {error}".rstrip(": ")})
            raise
    if log.is_whole:
        output.say(f"logged to {path}")


def keep_model(
    path: Path, classifier: Any, dataset: Any, about: dict[str, Any], data: Any, seed: int
) -> None:
    """Write the model to a file, with what predictions of other images need.

    Parameters
    ----------
    path : Path
    classifier : classifier
        Fitted on rows of the data set, with its labels.
    dataset : ImageDataset
    about : dict
        As :func:`described` returns it, and results.
    data : DataName or OwnSamples
        Where the samples came from.
    seed : int
        Of the draw of a test part.
    """
    import gpuclf

    split: dict[str, Any] = {"seed": seed}
    if isinstance(data, OwnSamples):
        split["test_fraction"] = data.test_fraction
    classifier.class_names_ = list(dataset.class_names)
    if dataset.image_shape is not None:
        classifier.image_shape_ = tuple(dataset.image_shape)
    classifier.training_ = about | {"split": split, "gpuclf": gpuclf.__version__}
    classifier.save(path)
