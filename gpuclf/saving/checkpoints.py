"""Checkpoints of a training: files of which the last two are kept, so that one is always whole."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace, to_host
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.saving.container import read_container, refuse, write_container
from gpuclf.saving.values import ValueReader, ValueWriter

__all__ = ["Checkpoints", "fingerprint"]

KEPT = 2
NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
BLOCK_BYTES = 1 << 24


class Checkpoints:
    """The checkpoints of one training in a folder, for one process at a time.

    Parameters
    ----------
    folder : str or path
        Made when the first checkpoint is written. Other files in it are left alone.
    settings : dict
        What must be the same for a training to go on: hyper-parameters and :func:`fingerprint` of
        the data, as JSON has it.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, {"reg": 0.1})
    ...     assert checkpoints.begin(resume=True) is None  # there is none
    ...     checkpoints.save(5, {"params": {"W": np.zeros(3)}, "rng": rng})
    ...     state = checkpoints.begin(resume=True)
    >>> state["params"], bool(state["rng"].random() == rng.random())
    ({'W': array([0., 0., 0.])}, True)
    """

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self._unreadable: list[Path] = []

    def begin(self, *, resume: bool) -> Any:
        """Return the state to go on from, or None where the training begins.

        Parameters
        ----------
        resume : bool
            Without it, a folder that has checkpoints is refused: they would be lost.

        Raises
        ------
        ValueError
            If the checkpoints are of another training, or none can be read.
        FileExistsError
            Without `resume`, if there are checkpoints.

        Warns
        -----
        UserWarning
            For a checkpoint that cannot be read, where the one before can.
        """
        paths = self._paths()
        if paths and not resume:
            raise FileExistsError(
                f"{self.folder} has checkpoints of a training, the last {paths[-1].name}: go on "
                "with resume=True (--resume), or use another folder"
            )
        for unfinished in self.folder.glob(".checkpoint-*.unfinished"):  # of a killed process
            unfinished.unlink(missing_ok=True)
        reasons, self._unreadable = [], []
        for path in reversed(paths):
            try:
                state, settings = _read(path)
            except (ValueError, OSError) as error:
                reasons.append(str(error))
                self._unreadable.append(path)
                continue
            self._check_settings(path, settings)
            for reason in reasons:
                warnings.warn(f"{reason}; going on from {path.name}", stacklevel=2)
            return state
        if reasons:
            raise ValueError(f"no checkpoint in {self.folder} can be read: {'; '.join(reasons)}")
        return None

    def save(self, position: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and remove those before the last two.

        Parameters
        ----------
        position : int
            Rises from one checkpoint to the next: epochs done.
        state : dict
            What :meth:`begin` will return: numbers, strings, arrays of any library (they come back
            on the host), generators, histories, and dicts, lists and tuples of such.

        Raises
        ------
        TypeError
            If the state holds anything else.
        """
        writer = ValueWriter()
        content = {"settings": self.settings, "state": writer.write(state, "state")}
        for where, value in writer.left_out.items():
            raise TypeError(f"{where} holds what a checkpoint cannot: {value!r}")
        path = self.folder / f"checkpoint-{position:08d}.safetensors"
        write_container(path, "checkpoint", content, writer.arrays)
        of_no_use = [old for old in self._unreadable if old != path]  # are none of the last two
        kept = [old for old in self._paths() if old not in of_no_use]
        for old in (*of_no_use, *kept[:-KEPT]):
            old.unlink(missing_ok=True)
        self._unreadable = []

    def _paths(self) -> list[Path]:
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*")]
        return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        names = sorted(settings.keys() | self.settings.keys())
        changed = [
            f"{name} is {settings.get(name)!r} there and {self.settings.get(name)!r} here"
            for name in names
            if settings.get(name) != self.settings.get(name)
        ]
        if changed:
            refuse(
                path,
                f"it is of another training: {'; '.join(changed)}. Use the same data and settings, "
                "or another folder",
            )


def fingerprint(*values: Any) -> str:
    """Return a digest of samples, labels and weights, whatever library holds them.

    Parameters
    ----------
    *values : array-like, Standardized, Streamed or None
    """
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Standardized):
            digest.update(fingerprint(value.X, value.mean, value.scale).encode())
            continue
        value = value.host if isinstance(value, Streamed) else value
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy does not have
            digest.update(b"bfloat16")
            value = value.view(array_namespace(value).int16)
        try:
            array = np.asarray(to_host(value))
        except TypeError:  # lists and frames
            array = np.asarray(value)
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype.hasobject:
            digest.update(repr(array.tolist()).encode())
            continue
        rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes)) if array.ndim else 1
        for first in range(0, len(array) if array.ndim else 1, rows):
            block = array[first : first + rows] if array.ndim else array
            digest.update(np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    content, arrays = read_container(path, "checkpoint")
    reader = ValueReader(arrays)
    try:
        state, settings = reader.read(content["state"]), dict(content["settings"])
        reader.finish()
    except ValueError as error:
        refuse(path, str(error))
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        refuse(path, f"its description of a training is incomplete or wrong ({error!r})")
    return state, settings
