"""CIFAR-10 from its original files: located, downloaded, checked and read."""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import rmtree

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.archive import ArchiveError, extract
from gpuclf.datasets.download import download as fetch
from gpuclf.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    damaged,
    file_md5,
    file_size,
    reading,
)
from gpuclf.datasets.locating import clues, holds, levels_below
from gpuclf.datasets.pickled_batches import (
    LARGEST_FILE_BYTES,
    N_CLASSES,
    read_python_batch,
    read_python_class_names,
)
from gpuclf.files import alone_in

__all__ = ["load_cifar10"]

_PIXELS = 3072
_ROWS_PER_BATCH = 10_000
_CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_ENVIRONMENT_VARIABLE = "GPUCLF_DATA"


def load_cifar10(
    data_dir: str | os.PathLike[str] | None = None, download: bool = True, *, verify: bool = True
) -> ImageDataset:
    """Load CIFAR-10 from disk, downloading it first if it is not there.

    Parameters
    ----------
    data_dir : path-like, optional
        Folder with the data; by default the one that the environment variable ``GPUCLF_DATA``
        names, and without that gpuclf's folder in the user's cache. It may hold the six batch
        files themselves, ``cifar-10-batches-py/``, ``cifar-10-batches-bin/``, or one of the
        original archives ``cifar-10-python.tar.gz`` and ``cifar-10-binary.tar.gz``, which is then
        checked and unpacked beside itself. A complete set of batch files under another name, up
        to three folders further down, is used too. No other folder is tried.
    download : bool, default True
        Fetch the official archive (163 MiB) into that folder if CIFAR-10 is not there. A download
        that breaks off is continued where it stopped, by this call or by the next one. Of several
        processes that want it one downloads, and the others wait for it.
    verify : bool, default True
        Compare the MD5 of files that have the published size with the published one: a damaged
        pixel has no other trace. A file is read for this once in a process, and again when it has
        changed. False is for copies that were altered on purpose.

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
        A file is missing, cut short, damaged or not what it should be, the folder holds the data
        set twice, or the download failed. The message names the file, what was expected, what was
        found, and what to do.

    Notes
    -----
    The Python version consists of pickles, which can run any code when opened with
    :func:`pickle.load`. Here they are read by an unpickler of our own that knows how to build
    lists, dicts, strings, numbers and arrays of bytes and refuses everything else. It reads what
    Python 3 writes too, with protocol 2 or later.

    The published files are known by their sizes (Python version) or by any one of them that has
    the published MD5 (binary version, where all sizes are alike).

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

    found = _find_batches(root) or _fetch_and_unpack(root, download)
    version, folder = found
    if verify:
        _check_sums(version, folder)
    return _read_dataset(version, folder)


def _fetch_and_unpack(root: Path, download: bool) -> tuple["_Version", Path]:
    if download:
        with suppress(OSError):  # said by the download, with the remedy
            root.mkdir(parents=True, exist_ok=True)
    with alone_in(root) as alone:
        found = _find_batches(root)  # another process may just have put it there
        if found is not None:
            return found
        archive = next((v for v in _VERSIONS if (root / v.archive).is_file()), None)
        if archive is None:
            if not download:
                raise DatasetNotFoundError(_not_found_message(root))
            archive = _VERSIONS[0]
            fetch(archive.url, archive.md5, root, alone=alone)
        return archive, _unpack(archive, root, alone=alone)


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
    for folder, version in _usual_folders(root):
        missing = [name for name in version.batches if not holds(folder, (name,))]
        if not missing:
            return version, folder
        if len(missing) < len(version.batches) and incomplete is None:
            incomplete = folder, missing
    for level in levels_below(root):
        for version in _VERSIONS:
            complete = [folder for folder in level if holds(folder, version.batches)]
            if len(complete) > 1:
                raise DatasetError(
                    f"{root} holds CIFAR-10 more than once: {', '.join(map(str, complete))}. "
                    "Pass the folder that is meant as data_dir=."
                )
            if complete:
                return version, complete[0]
    if incomplete is None:
        return None
    folder, missing = incomplete
    raise DatasetError(
        f"{folder} holds an incomplete CIFAR-10: expected six batch files, but "
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Delete the batch "
        "files that are there and load again with download=True, or unpack the original archive."
    )


def _usual_folders(root: Path) -> list[tuple[Path, "_Version"]]:
    return [(root, v) for v in _VERSIONS] + [(root / v.folder, v) for v in _VERSIONS]


def _not_found_message(root: Path) -> str:
    places = dict.fromkeys(str(folder) for folder, _ in _usual_folders(root))
    archives = [str(root / version.archive) for version in _VERSIONS]
    instead = clues(root, tuple(version.archive for version in _VERSIONS))
    looked = ["CIFAR-10 was not found. Looked for its batch files and archives in"]
    remedy = (
        "Use download=True to fetch it (163 MiB), pass the folder that has it as data_dir=, or "
        f"set the environment variable {_ENVIRONMENT_VARIABLE} to that folder."
    )
    return "\n".join(["\n    ".join([*looked, *places, *archives]), *instead, remedy])


def _check_sums(version: "_Version", folder: Path) -> None:
    """Raise if a file is a damaged copy of the published one."""
    found = {}
    for name, (size, _) in version.published.items():
        path = folder / name
        with reading(path):
            status = path.stat() if path.is_file() else None
        if status is not None and status.st_size == size:
            found[name] = _remembered_md5(path, status.st_ino, size, status.st_mtime_ns)
    wrong = {name: md5 for name, md5 in found.items() if md5 != version.published[name][1]}
    if not found.keys() & set(version.batches) - wrong.keys():
        # None is the published one, so only the sizes can tell that the others should be.
        wrong = {
            name: wrong[name] for name in version.batches if version.sizes_tell and name in wrong
        }
    for name, md5 in wrong.items():
        raise DatasetError(
            f"{folder / name} is a damaged copy of the published file: it has the same size, but "
            f"MD5 {md5} instead of {version.published[name][1]}. Delete the six batch files in "
            f"{folder} and load again with download=True, or unpack the original archive. If the "
            "file was altered on purpose, load it with verify=False."
        )


@lru_cache(maxsize=64)
def _remembered_md5(path: Path, inode: int, size: int, modified_ns: int) -> str:
    return file_md5(path)


def _read_dataset(version: "_Version", folder: Path) -> ImageDataset:
    rows = _ROWS_PER_BATCH
    n_train = (len(version.batches) - 1) * rows
    X = np.empty((n_train + rows, _PIXELS), np.uint8)
    y = np.empty(n_train + rows, np.int64)
    for i, name in enumerate(version.batches):
        batch = slice(i * rows, (i + 1) * rows)
        version.read_batch(folder / name, X[batch], y[batch])
    names_file = folder / version.class_names
    class_names = version.read_class_names(names_file) if names_file.is_file() else _CLASS_NAMES
    if len(class_names) != N_CLASSES:
        damaged(names_file, f"{N_CLASSES} class names", f"{len(class_names)}")
    return ImageDataset(
        *(X[:n_train], y[:n_train], X[n_train:], y[n_train:]),
        name="CIFAR-10",
        class_names=class_names,
        source=f"CIFAR-10, {version.name} version, {folder}",
        image_shape=(3, 32, 32),
    )


def _read_binary_batch(path: Path, X: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> None:
    """Fill `X` and `y` from records of one label byte and 3,072 pixel bytes."""
    record = 1 + _PIXELS
    expected = _ROWS_PER_BATCH * record
    size = file_size(path)
    if size != expected:
        records_of = f"{_ROWS_PER_BATCH:,} records of {record:,}"
        damaged(path, f"{expected:,} bytes ({records_of})", f"{size:,} bytes")
    with reading(path):
        records = np.fromfile(path, np.uint8).reshape(_ROWS_PER_BATCH, record)
    labels = records[:, 0]
    if labels.max() >= N_CLASSES:
        i = int(np.argmax(labels >= N_CLASSES))
        damaged(path, f"labels 0..{N_CLASSES - 1}", f"label {labels[i]} in record {i}")
    X[...] = records[:, 1:]
    y[...] = labels


def _read_binary_class_names(path: Path) -> tuple[str, ...]:
    try:
        with reading(path):
            return tuple(path.read_text(encoding="ascii").split())
    except UnicodeDecodeError:
        damaged(path, "a class name a line, in ASCII", "other bytes")


def _unpack(version: "_Version", root: Path, *, alone: bool) -> Path:
    """Check the archive in `root` and unpack it there; return the folder of its batch files."""
    archive = root / version.archive
    target = root / version.folder
    prefix = f".{version.folder}-"
    _check_archive(version, archive)
    try:
        if alone:  # so whoever made these was killed
            for left in root.glob(f"{prefix}*"):
                rmtree(left, ignore_errors=True)
        # Unpacked under another name, renamed when complete: an interruption leaves nothing that
        # could be taken for the data. The inner folder gets ordinary permissions, which
        # a temporary one does not have.
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as temporary:
            folder = Path(temporary, version.folder)
            folder.mkdir()
            names = (*version.batches, version.class_names)
            wanted = {f"{version.folder}/{name}": folder / name for name in names}
            extract(archive, wanted, LARGEST_FILE_BYTES)
            missing = [name for name in version.batches if not holds(folder, (name,))]
            if missing:
                damaged(archive, "six batch files in it", f"no {', '.join(missing)}")
            _move(folder, target)
    except ArchiveError as error:
        damaged(archive, "a complete gzipped tar archive", str(error))
    except OSError as error:
        raise DatasetError(
            f"{archive} could not be unpacked into {root}: {error}. Make that folder writable and "
            "see that 200 MB are free on its disk, or unpack the archive elsewhere and pass that "
            "folder as data_dir=."
        ) from error
    return target


def _move(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        # It is there: another process was faster, or someone deleted the batch files alone.
        if not target.is_dir():
            raise
        for path in folder.iterdir():
            path.replace(target / path.name)


def _check_archive(version: "_Version", archive: Path) -> None:
    md5 = file_md5(archive)
    if md5 != version.md5:
        damaged(archive, f"MD5 {version.md5}", f"MD5 {md5} ({file_size(archive):,} bytes)")


@dataclass(frozen=True)
class _Version:
    name: str
    folder: str
    batches: tuple[str, ...]
    class_names: str
    url: str
    md5: str
    published: Mapping[str, tuple[int, str]]  # size and MD5 of a file
    sizes_tell: bool  # whether a batch of this size can only be a copy of the published one
    read_batch: Callable[[Path, npt.NDArray[np.uint8], npt.NDArray[np.int64]], None]
    read_class_names: Callable[[Path], tuple[str, ...]]

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
# Checksums of the archives: https://www.cs.toronto.edu/~kriz/cifar.html; of the pickles: as
# torchvision has them too; of the binary batches: computed from the pickles, which hold the same
# images and labels.
_VERSIONS = (
    _Version(
        name="python",
        folder="cifar-10-batches-py",
        batches=_BATCHES,
        class_names="batches.meta",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        published={
            "data_batch_1": (31_035_704, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": (31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": (31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": (31_035_696, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": (31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": (31_035_526, "40351d587109b95175f43aff81a1287e"),
            "batches.meta": (158, "5ff9c542aee3614f3951f8cda6e48888"),
        },
        sizes_tell=True,
        read_batch=read_python_batch,
        read_class_names=read_python_class_names,
    ),
    _Version(
        name="binary",
        folder="cifar-10-batches-bin",
        batches=tuple(f"{name}.bin" for name in _BATCHES),
        class_names="batches.meta.txt",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        published={
            "data_batch_1.bin": (30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            "data_batch_2.bin": (30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
            "data_batch_3.bin": (30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            "data_batch_4.bin": (30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            "data_batch_5.bin": (30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
            "test_batch.bin": (30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
        },
        sizes_tell=False,
        read_batch=_read_binary_batch,
        read_class_names=_read_binary_class_names,
    ),
)
