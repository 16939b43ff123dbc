"""CIFAR-10 from its original files: located, downloaded, checked and read, without trusting them.

Also home of :class:`ImageDataset` and of the errors that every loader raises.
"""

import gzip
import hashlib
import os
import pickle
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

__all__ = ["DatasetError", "DatasetNotFoundError", "ImageDataset", "load_cifar10"]

_PIXELS = 3072
_ROWS_PER_BATCH = 10_000
_N_CLASSES = 10
_CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Twice what the largest file of either version takes: a bound on what an altered file or archive
# can make this process read or write.
_LARGEST_FILE_BYTES = 64 << 20

_ENVIRONMENT_VARIABLE = "GPUCLF_DATA"
_DOWNLOAD_ATTEMPTS = 4
_RETRY_WAIT_S = 1.0
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18


class DatasetError(ValueError):
    """Files of a data set are damaged, incomplete, not what they claim, or cannot be had."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """A data set is in none of the places where it was looked for."""


class _Splits(NamedTuple):
    X_train: npt.NDArray[np.uint8]
    y_train: npt.NDArray[np.int64]
    X_test: npt.NDArray[np.uint8]
    y_test: npt.NDArray[np.int64]


class ImageDataset(_Splits):
    """Images and labels for training and testing; unpacks into exactly four arrays.

    Attributes
    ----------
    X_train, X_test : ndarray of uint8, shape (N, 3072)
        Images, one a row: the red, green and blue plane, each 32 x 32 row-major.
    y_train, y_test : ndarray of int64, shape (N,)
        Labels, positions in `class_names`.
    name : str
        Which data set, such as "CIFAR-10".
    class_names : tuple of str
        Name of each label.
    source : str
        Where the data came from, in a few words, for anything that reports a result.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.zeros((2, 3072), np.uint8), np.array([0, 1])
    >>> data = ImageDataset(X, y, X[:1], y[:1], name="black", class_names=("a", "b"))
    >>> X_train, y_train, X_test, y_test = data
    >>> data
    ImageDataset(name='black', X_train=(2, 3072), X_test=(1, 3072), source='unknown')
    """

    name: str
    class_names: tuple[str, ...]
    source: str

    def __new__(
        cls,
        X_train: npt.NDArray[np.uint8],
        y_train: npt.NDArray[np.int64],
        X_test: npt.NDArray[np.uint8],
        y_test: npt.NDArray[np.int64],
        *,
        name: str = "unnamed",
        class_names: tuple[str, ...] = (),
        source: str = "unknown",
    ) -> Self:
        """Attach a description to the four arrays."""
        self = super().__new__(cls, X_train, y_train, X_test, y_test)
        self.name = name
        self.class_names = class_names
        self.source = source
        return self

    def _replace(self, **changes: Any) -> Self:
        # The inherited one knows the four arrays alone and would drop where they came from.
        return type(self)(**{**self._asdict(), **vars(self), **changes})

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, X_train={self.X_train.shape}, "
            f"X_test={self.X_test.shape}, source={self.source!r})"
        )


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None, download: bool = True
) -> ImageDataset:
    """Load CIFAR-10 from disk, downloading it first if it is not there.

    Parameters
    ----------
    data_dir : path-like, optional
        Folder with the data; by default the one that the environment variable ``GPUCLF_DATA``
        names, and without that gpuclf's folder in the user's cache. It may hold the six batch
        files themselves, ``cifar-10-batches-py/``, ``cifar-10-batches-bin/``, or one of the
        original archives ``cifar-10-python.tar.gz`` and ``cifar-10-binary.tar.gz``, which is then
        checked and unpacked beside itself. No other folder is tried.
    download : bool, default True
        Fetch the official archive (163 MiB) into that folder if CIFAR-10 is not there. A download
        that breaks off is continued where it stopped, by this call or by the next one.

    Returns
    -------
    ImageDataset
        50,000 training and 10,000 test images as bytes, in the order of the files. The Python and
        the binary version give identical arrays.

    Raises
    ------
    DatasetNotFoundError
        CIFAR-10 is not there and `download` is False. The message lists every place looked in.
    DatasetError
        A file is missing, cut short or not what it should be, or the download failed. The message
        names the file, what was expected, what was found, and what to do.

    Notes
    -----
    The Python version consists of pickles, which can run any code when opened with
    :func:`pickle.load`. Here they are read by an unpickler that knows how to build lists, dicts,
    strings, numbers and arrays of bytes and refuses everything else.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html

    Examples
    --------
    >>> X_train, y_train, X_test, y_test = load_cifar10()  # doctest: +SKIP
    >>> X_train.shape, X_train.dtype.name  # doctest: +SKIP
    ((50000, 3072), 'uint8')
    """
    root = _data_folder(data_dir)
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root} is not a folder. Give the folder that holds CIFAR-10.")

    found = _find_batches(root)
    if found is None:
        archive = next((v for v in _VERSIONS if (root / v.archive).is_file()), None)
        if archive is None:
            if not download:
                raise DatasetNotFoundError(_not_found_message(root))
            archive = _VERSIONS[0]
            _download(archive, root)
        found = archive, _unpack(archive, root)
    version, folder = found
    return _read_dataset(version, folder)


# --- where the data is ---------------------------------------------------------------------------


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the one folder that is searched and, if need be, downloaded into."""
    chosen = data_dir if data_dir is not None else os.environ.get(_ENVIRONMENT_VARIABLE) or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    # Not at the top: pooch takes longer to import than the rest of the package.
    import pooch  # type: ignore[import-untyped]

    return Path(pooch.os_cache("gpuclf")).expanduser()


def _find_batches(root: Path) -> tuple["_Version", Path] | None:
    """Return the version and folder of a complete set of batch files in `root`, if there is one."""
    incomplete = None
    for folder, version in _batch_folders(root):
        missing = [name for name in version.batches if not (folder / name).is_file()]
        if not missing:
            return version, folder
        if len(missing) < len(version.batches) and incomplete is None:
            incomplete = folder, missing
    if incomplete is None:
        return None
    folder, missing = incomplete
    raise DatasetError(
        f"{folder} holds an incomplete CIFAR-10: expected six batch files, but "
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Delete the batch "
        "files that are there and load again with download=True, or unpack the original archive."
    )


def _batch_folders(root: Path) -> list[tuple[Path, "_Version"]]:
    return [(root, v) for v in _VERSIONS] + [(root / v.folder, v) for v in _VERSIONS]


def _not_found_message(root: Path) -> str:
    places = dict.fromkeys(str(folder) for folder, _ in _batch_folders(root))
    archives = [str(root / version.archive) for version in _VERSIONS]
    return "\n    ".join(
        ["CIFAR-10 was not found. Looked for its batch files and archives in", *places, *archives]
    ) + (
        "\nUse download=True to fetch it (163 MiB), pass the folder that has it as data_dir=, or "
        f"set the environment variable {_ENVIRONMENT_VARIABLE} to that folder."
    )


# --- reading -------------------------------------------------------------------------------------


def _read_dataset(version: "_Version", folder: Path) -> ImageDataset:
    rows = _ROWS_PER_BATCH
    n_train = len(version.batches) - 1
    X_train = np.empty((n_train * rows, _PIXELS), np.uint8)
    y_train = np.empty(n_train * rows, np.int64)
    X_test = np.empty((rows, _PIXELS), np.uint8)
    y_test = np.empty(rows, np.int64)
    *train_files, test_file = (folder / name for name in version.batches)
    for i, path in enumerate(train_files):
        batch = slice(i * rows, (i + 1) * rows)
        version.read_batch(path, X_train[batch], y_train[batch])
    version.read_batch(test_file, X_test, y_test)

    names_file = folder / version.class_names
    class_names = version.read_class_names(names_file) if names_file.is_file() else _CLASS_NAMES
    return ImageDataset(
        X_train,
        y_train,
        X_test,
        y_test,
        name="CIFAR-10",
        class_names=class_names,
        source=f"CIFAR-10, {version.name} version, {folder}",
    )


def _damaged(path: Path, expected: str, found: str) -> NoReturn:
    raise DatasetError(
        f"{path} is damaged or not part of CIFAR-10: expected {expected}, found {found}. "
        "Delete it and download or unpack CIFAR-10 again."
    )


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error


def _check_class_names(path: Path, names: list[str]) -> tuple[str, ...]:
    if len(names) != _N_CLASSES:
        _damaged(path, f"{_N_CLASSES} class names", f"{len(names)}")
    return tuple(names)


def _read_binary_batch(path: Path, X: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> None:
    """Fill `X` and `y` from records of one label byte and 3,072 pixel bytes."""
    record = 1 + _PIXELS
    expected = _ROWS_PER_BATCH * record
    size = _file_size(path)
    if size != expected:
        _damaged(
            path,
            f"{expected:,} bytes ({_ROWS_PER_BATCH:,} records of {record:,})",
            f"{size:,} bytes",
        )
    try:
        records = np.fromfile(path, np.uint8).reshape(_ROWS_PER_BATCH, record)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    labels = records[:, 0]
    if labels.max() >= _N_CLASSES:
        i = int(np.argmax(labels >= _N_CLASSES))
        _damaged(path, f"labels 0..{_N_CLASSES - 1}", f"label {labels[i]} in record {i}")
    X[...] = records[:, 1:]
    y[...] = labels


def _read_binary_class_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        _damaged(path, "a class name a line, in ASCII", "other bytes")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    return _check_class_names(path, text.split())


def _read_python_batch(path: Path, X: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> None:
    """Fill `X` and `y` from a pickled dict with the keys b"data" and b"labels"."""
    batch = _unpickle(path)
    data, labels = batch.get(b"data"), batch.get(b"labels")

    expected = f"b'data' to be uint8 of shape {X.shape}"
    if not isinstance(data, _PickledArray) or data.array is None:
        _damaged(path, expected, _kind(data))
    if data.array.shape != X.shape:
        _damaged(path, expected, f"shape {data.array.shape}")

    expected = f"b'labels' to be a list of {len(y):,} integers 0..{_N_CLASSES - 1}"
    if not isinstance(labels, list):
        _damaged(path, expected, _kind(labels))
    if len(labels) != len(y):
        _damaged(path, expected, f"{len(labels):,} of them")
    # By type, as True and 1.0 would pass for labels otherwise.
    if set(map(type, labels)) != {int} or min(labels) < 0 or max(labels) >= _N_CLASSES:
        i = next(i for i, v in enumerate(labels) if type(v) is not int or not 0 <= v < _N_CLASSES)
        # Only a number of ordinary size is worth printing, and the file may have any.
        plain = type(labels[i]) is int and abs(labels[i]) < 1 << 63
        _damaged(path, expected, f"{labels[i] if plain else _kind(labels[i])} at position {i}")
    X[...] = data.array
    y[...] = labels


def _read_python_class_names(path: Path) -> tuple[str, ...]:
    names = _unpickle(path).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        _damaged(path, "b'label_names' to be a list of byte strings", _kind(names))
    return _check_class_names(path, [name.decode("ascii", "replace") for name in names])


def _kind(found: object) -> str:
    return "nothing" if found is None else f"a value of type {type(found).__name__.strip('_')}"


# --- the unpickler -------------------------------------------------------------------------------
#
# A pickle is a program. It may name any importable object, call it with arguments of its choice
# (REDUCE), hand it a state (BUILD) and so run what it likes. Letting it name numpy.ndarray and
# numpy.dtype is not harmless either: these can then be called at will, and a forged state reaches
# NumPy's C code. Here every name that a pickled array needs stands for an object of this module
# instead, which checks what it is given; the pickle never gets hold of anything of NumPy's.


class _ForbiddenGlobalError(Exception):
    """A pickle names something other than what an array of bytes is made of."""


class _ForeignArrayError(Exception):
    """A pickle builds an array of another kind than bytes."""


class _StandIn:
    """Base of what a pickle may name: nothing can be stored on it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _ForeignArrayError("a malformed array")


class _PickledType(_StandIn):
    """Stands for numpy.ndarray, which pickles only mention, never call."""

    __slots__ = ()


class _PickledDtype(_StandIn):
    """Stands for the one dtype that is read, uint8."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the state: byte order and alignment mean nothing to bytes."""


class _PickledArray(_StandIn):
    """Stands for an array of bytes; `array` is a read-only view of the bytes in the pickle."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _PickledDtype(), bool(fortran_order), bytes(content)):
                pass
            case _:
                raise _ForeignArrayError("a malformed array")
        order: Any = "F" if fortran_order else "C"
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _MakeArray(_StandIn):
    """Stands for numpy's _reconstruct."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _PickledArray:
        return _PickledArray()


class _MakeDtype(_StandIn):
    """Stands for numpy.dtype."""

    __slots__ = ()

    def __call__(self, code: object = None, *flags: object) -> _PickledDtype:
        if code not in (b"u1", "u1", b"|u1", "|u1"):
            shown = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
            raise _ForeignArrayError(f"an array of dtype {shown[:20]!r}")
        return _PickledDtype()


class _MakeBytes(_StandIn):
    """Stands for _codecs.encode, by which Python 3 writes bytes for the protocol of Python 2."""

    __slots__ = ()

    def __call__(self, text: object = None, encoding: object = None) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise _ForbiddenGlobalError("_codecs.encode with unusual arguments")
        return text.encode("latin1")


_PICKLE_GLOBALS: dict[tuple[str, str], _StandIn] = {
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy", "ndarray"): _PickledType(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _MakeBytes(),
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise _ForbiddenGlobalError(f"{module}.{name}"[:80]) from None


def _unpickle(path: Path) -> dict[object, object]:
    """Return the dict that a pickle of Python 2 holds; strings in it are bytes."""
    size = _file_size(path)
    if size > _LARGEST_FILE_BYTES:
        _damaged(path, f"at most {_LARGEST_FILE_BYTES:,} bytes", f"{size:,}")
    try:
        with path.open("rb") as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
    except _ForbiddenGlobalError as error:
        raise DatasetError(
            f"{path} is not CIFAR-10: its pickle asks for {error}, which the data set does not "
            "contain and which could run foreign code. Nothing of it was run. Do not open this "
            "file with pickle; delete it and download CIFAR-10 again."
        ) from None
    except _ForeignArrayError as error:
        _damaged(path, "arrays of uint8", str(error))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:
        # On bytes that are not a pickle, the unpickler raises nearly anything.
        reason = f"{type(error).__name__}: {error}"[:120]
        _damaged(path, "a complete pickle", f"{size:,} bytes that cannot be read as one ({reason})")
    if not isinstance(content, dict):
        _damaged(path, "a pickled dict", _kind(content))
    return content


# --- archives ------------------------------------------------------------------------------------


def _unpack(version: "_Version", root: Path) -> Path:
    """Check the archive in `root` and unpack it there; return the folder of its batch files."""
    archive = root / version.archive
    target = root / version.folder
    wanted = {f"{version.folder}/{name}": name for name in (*version.batches, version.class_names)}
    _check_archive(version, archive)
    try:
        # Unpacked under another name, renamed when complete: an interruption leaves nothing that
        # could be taken for the data. The inner folder gets ordinary permissions, which
        # a temporary one does not have.
        with tempfile.TemporaryDirectory(prefix=f".{version.folder}-", dir=root) as temporary:
            folder = Path(temporary, version.folder)
            folder.mkdir()
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    if member.name in wanted and member.isreg():
                        _unpack_member(tar, member, folder / wanted[member.name])
            missing = [name for name in version.batches if not (folder / name).is_file()]
            if missing:
                _damaged(archive, "six batch files in it", f"no {', '.join(missing)}")
            try:
                folder.rename(target)
            except OSError:
                # Another process may have been faster, which is as good.
                if not all((target / name).is_file() for name in version.batches):
                    raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        _damaged(archive, "a complete gzipped tar archive", f"{type(error).__name__}: {error}")
    except OSError as error:
        raise DatasetError(
            f"{archive} could not be unpacked into {root}: {error}. Make that folder writable and "
            "see that 200 MB are free on its disk, or unpack the archive elsewhere and pass that "
            "folder as data_dir=."
        ) from error
    return target


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    # Only the bytes come from the archive. Its names, links, owners and modes never reach the file
    # system, which is stricter than tarfile's "data" filter and works before Python 3.11.4 too.
    if member.size > _LARGEST_FILE_BYTES:
        raise tarfile.TarError(f"{member.name} would take {member.size:,} bytes")
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.TarError(f"{member.name} has no content")
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)


def _check_archive(version: "_Version", archive: Path) -> None:
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise DatasetError(f"{archive} cannot be read: {error.strerror}.") from error
    if found.hexdigest() != version.md5:
        _damaged(
            archive,
            f"MD5 {version.md5}",
            f"MD5 {found.hexdigest()} ({_file_size(archive):,} bytes)",
        )


# --- download ------------------------------------------------------------------------------------


def _download(version: "_Version", root: Path) -> None:
    """Fetch the archive of `version` into `root`; it is there afterwards only if it is right."""
    import pooch
    import requests

    part = root / f"{version.archive}.part"
    by_hand = (
        f"Or download {version.url} by other means, put it into {root} and load again; or pass a "
        "folder that has CIFAR-10 as data_dir=."
    )
    try:
        pooch.retrieve(
            version.url,
            known_hash=f"md5:{version.md5}",
            fname=version.archive,
            path=root,
            downloader=_ResumingDownloader(part),
        )
    except requests.RequestException as error:
        kept = ""
        if part.is_file():
            kept = f" The {_file_size(part):,} bytes that arrived are kept; load again to go on."
        raise DatasetError(
            f"CIFAR-10 could not be downloaded from {version.url}: {error}.{kept} {by_hand}"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"What {version.url} sent is not CIFAR-10: {error} Load again to start afresh. "
            f"{by_hand}"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The download of {version.url} could not be written to {root} ({error}). Pass "
            "a folder that is writable and has 400 MB free as data_dir=, or set the environment "
            f"variable {_ENVIRONMENT_VARIABLE} to one."
        ) from error


class _ResumingDownloader:
    """Downloader for pooch that goes on where an earlier attempt stopped.

    Parameters
    ----------
    part : Path
        File that collects what arrived. It outlives a failure and is given up to pooch, which
        checks it, when complete.
    """

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        import requests

        for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
            try:
                self._fetch(url)
                break
            except requests.RequestException as error:
                answer = error.response
                refused = answer is not None and 400 <= answer.status_code < 500
                if refused or attempt == _DOWNLOAD_ATTEMPTS:
                    raise
                time.sleep(attempt * _RETRY_WAIT_S)
        self.part.replace(output_file)

    def _fetch(self, url: str) -> None:
        import requests

        start = self.part.stat().st_size if self.part.exists() else 0
        # Compressed on the way, the byte counts of server and file would not be the same.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            sent_range = answer.headers.get("Content-Range", "")
            if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
                if sent_range == f"bytes */{start}":
                    return
                self.part.unlink()
                raise requests.ConnectionError("the partial file did not fit and was removed")
            answer.raise_for_status()
            # A server without byte ranges answers 200 and sends the whole file.
            resumed = sent_range.startswith(f"bytes {start}-") and answer.status_code == 206
            if not resumed:
                start = 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length is not None else None
            with self.part.open("ab" if resumed else "wb") as file:
                _copy_with_progress(answer.iter_content(_CHUNK_BYTES), file.write, start, total)


def _copy_with_progress(
    chunks: Any, write: Callable[[bytes], object], start: int, total: int | None
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("CIFAR-10", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("download", total=total, completed=start)
        for chunk in chunks:
            write(chunk)
            progress.advance(task, len(chunk))


# --- the two versions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Version:
    name: str
    folder: str
    batches: tuple[str, ...]
    class_names: str
    url: str
    md5: str
    read_batch: Callable[[Path, npt.NDArray[np.uint8], npt.NDArray[np.int64]], None]
    read_class_names: Callable[[Path], tuple[str, ...]]

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
# Checksums: https://www.cs.toronto.edu/~kriz/cifar.html
_VERSIONS = (
    _Version(
        name="python",
        folder="cifar-10-batches-py",
        batches=_BATCHES,
        class_names="batches.meta",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        read_batch=_read_python_batch,
        read_class_names=_read_python_class_names,
    ),
    _Version(
        name="binary",
        folder="cifar-10-batches-bin",
        batches=tuple(f"{name}.bin" for name in _BATCHES),
        class_names="batches.meta.txt",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        read_batch=_read_binary_batch,
        read_class_names=_read_binary_class_names,
    ),
)
