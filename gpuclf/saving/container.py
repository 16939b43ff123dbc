"""A file of arrays with a JSON description: what models and checkpoints are stored in.

The file is one of safetensors; its metadata hold one entry, "gpuclf", a JSON object with the format
version, the library version, the kind of content, the content, and a digest of it all. Any change
to the file is an error when it is read. The digest tells damage, not who wrote the file: what is
read is checked as if a stranger had.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import gpuclf
from gpuclf.files import replace_whole

__all__ = ["FORMAT_VERSION", "read_container", "write_container"]

FORMAT_VERSION = 1
ENTRY = "gpuclf"


def write_container(path: Path, kind: str, content: Any, arrays: dict[str, np.ndarray]) -> None:
    """Write a file whole or not at all, creating the folder if need be.

    Parameters
    ----------
    path : Path
        An older file of that name stays until the new one is complete.
    kind : {"model", "checkpoint"}
    content
        As JSON has it.
    arrays : dict of NumPy array
        Numbers or booleans, C-contiguous.
    """
    from safetensors.numpy import save

    header = {
        "format_version": FORMAT_VERSION,
        "library_version": gpuclf.__version__,
        "kind": kind,
        "content": content,
    }
    header["sha256"] = _digest(header, arrays)
    replace_whole(path, save(arrays, {ENTRY: _json(header)}))


def read_container(path: Path, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the content and the arrays of a file.

    Parameters
    ----------
    path : Path
    kind : {"model", "checkpoint"}
        Another one is refused.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not such a file, was changed or cut off, or is of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb"):  # a missing file or a folder, in Python's words
        pass
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(ENTRY)
            if text is None:
                refuse(path, "it is a safetensors file of another program, without gpuclf's entry")
            header = _checked_header(path, text, kind)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        refuse(path, f"it is no safetensors file, or is damaged or cut off ({error})")
    except (TypeError, KeyError, AttributeError) as error:  # numbers that NumPy does not have
        refuse(path, f"it holds numbers of a type that gpuclf does not write ({error})")
    found = header.pop("sha256", None)
    if found != _digest(header, arrays):
        refuse(path, "its content is not what was written: it was damaged or changed (sha256)")
    return header["content"], arrays


def refuse(path: Path | str, reason: str) -> NoReturn:
    """Raise the ValueError for a file that cannot be used."""
    raise ValueError(f"{path} cannot be loaded: {reason}")


def _checked_header(path: Path, text: str, kind: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        _json(header)  # NaN and infinity, which JSON does not have
    except (ValueError, RecursionError) as error:
        refuse(path, f"its header is no JSON ({error})")
    if not isinstance(header, dict):
        refuse(path, f"its header is no JSON object but {type(header).__name__}")
    version = header.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        refuse(
            path,
            f"it has format version {version!r}, written by gpuclf "
            f"{header.get('library_version')!r}; gpuclf {gpuclf.__version__} reads versions up to "
            f"{FORMAT_VERSION}: upgrade gpuclf",
        )
    if header.get("kind") != kind or "content" not in header:
        refuse(path, f"it holds a {header.get('kind')!r}, not a {kind}")
    return header


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _digest(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_json(header).encode())
    for name, array in sorted(arrays.items()):
        digest.update(_json([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
