"""A folder of pictures, in a folder a class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuclf.datasets.decoding import check_size, decode
from gpuclf.datasets.image_dataset import DatasetError, DatasetNotFoundError, ImageDataset
from gpuclf.datasets.splitting import with_test_part

__all__ = [
    "IMAGE_SUFFIXES",
    "images_below",
    "load_image_folder",
    "looks_like_image_folder",
    "read_image_folder",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_OTHER_IMAGES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg")
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there
_N_NAMED = 10


def load_image_folder(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] = (32, 32),
    *,
    channels: int = 3,
    test_fraction: float | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Load pictures from a folder that has a folder a class.

    Parameters
    ----------
    path : path-like
        Folder with a subfolder a class, or with ``train/`` and ``test/`` (else ``val/``) that have
        these. PNG, JPEG, WebP and BMP are read, at any depth below a class; hidden files and
        other suffixes are passed over; images among these are counted in the warning.
    size : int or (height, width), default (32, 32)
        What every image is stretched to.
    channels : {3, 1}, default 3
        Red, green and blue, or grey. Alpha is shown on white, palettes become colours, EXIF's
        rotation is applied, of 16 bits a pixel the upper eight are kept.
    test_fraction : float, optional
        Part of each class for testing where there is no test folder; by default 0.2.
    seed : int, default 0
        Of the draw of that part.

    Returns
    -------
    ImageDataset
        Images as bytes. Classes and, within them, files are in the order of their names (that of
        their characters' codes), so that labels are the same on every machine.

    Raises
    ------
    DatasetNotFoundError
        There is no such folder.
    DatasetError
        It has no folders of images, or what is to be tested has classes that training has not.
    ImportError
        Pillow is missing.

    Warns
    -----
    UserWarning
        Once, if files cannot be read, folders are without images, or images are in no class or of
        a type that is not read; names them, and goes on without.

    Examples
    --------
    >>> data = load_image_folder("pets", size=64)  # doctest: +SKIP
    >>> data.class_names, data.image_shape  # doctest: +SKIP
    (('cat', 'dog'), (3, 64, 64))
    """
    wanted = check_size(size)
    if wanted is None:
        raise ValueError("size must be what all images are stretched to, such as (32, 32)")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (colour) or 1 (grey), got {channels!r}")
    return with_test_part(read_image_folder(Path(path), wanted, channels), test_fraction, seed)


def looks_like_image_folder(root: Path) -> bool:
    """Tell whether there is an image below a subfolder."""
    return any(images_below(folder, stop_at_first=True) for folder in _subfolders(root))


def read_image_folder(root: Path, size: tuple[int, int], channels: int = 3) -> ImageDataset:
    """Read what is there; without a test folder, the test part is empty."""
    root = root.expanduser()
    if not root.is_dir():
        raise DatasetNotFoundError(f"{root} is not a folder. Give one that has a folder a class.")
    train, test = _parts(root)
    remarks: list[str] = []
    X, classes = _read_part(train, size, channels, remarks)
    class_names = sorted(set(classes))
    X_test, test_classes = (
        _read_part(test, size, channels, remarks) if test is not None else (X[:0], [])
    )
    unknown = sorted(set(test_classes) - set(class_names))
    if unknown:
        raise DatasetError(
            f"{test} has classes that {train} has no image of: {_some(unknown)}. Rename or move "
            "these folders."
        )
    if remarks:
        warnings.warn(f"{'; '.join(remarks)}. These are left out.", stacklevel=3)
    label = {name: i for i, name in enumerate(class_names)}
    return ImageDataset(
        *(X, np.array([label[name] for name in classes], np.int64)),
        *(X_test, np.array([label[name] for name in test_classes], np.int64)),
        name=root.resolve().name,
        class_names=tuple(class_names),
        source=f"images in {root}",
        image_shape=(channels, *size),
    )


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Return the folder of training classes and that of test classes, if there is one."""
    folders = {folder.name.lower(): folder for folder in _subfolders(root)}
    train = next((folders[name] for name in _TRAIN if name in folders), None)
    # "train" may be a class too, beside "bus" and "car".
    if train is None or not folders.keys() <= {*_TRAIN, *_TEST} or not _subfolders(train):
        return root, None
    return train, next((folders[name] for name in _TEST if name in folders), None)


def _read_part(
    root: Path, size: tuple[int, int], channels: int, remarks: list[str]
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the images below each folder, and the class of each; add what is left out."""
    found = {folder.name: images_below(folder) for folder in _subfolders(root)}
    loose = [path for path in _entries(root) if _is_image(path)]
    if not any(found.values()):
        raise DatasetError(
            f"{root} has no folders of images, so that there is no class: {len(loose)} images lie "
            f"in it directly, {len(found)} folders have none. Put the images into a folder a "
            f"class, as {root / 'CLASS' / 'image.png'}; read are {', '.join(IMAGE_SUFFIXES)}."
        )
    if loose:
        remarks.append(f"{len(loose)} images lie in {root} itself, of no class")
    others = [
        path.suffix.lower()
        for folder in _subfolders(root)
        for path in _files_below(folder)
        if path.suffix.lower() in _OTHER_IMAGES
    ]
    if others:
        remarks.append(
            f"{len(others)} images in {root} are of another type ({_some(sorted(set(others)))}), "
            f"read are {', '.join(IMAGE_SUFFIXES)}"
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        remarks.append(f"no image in {len(empty)} folders of {root}: {_some(empty)}")
    paths = [path for paths in found.values() for path in paths]
    classes = [name for name, paths in found.items() for _ in paths]
    rows, failed = decode(paths, size, channels)
    if failed:
        listed = [f"{Path(name).relative_to(root)} ({why})" for name, why in failed.values()]
        remarks.append(
            f"{len(failed)} of {len(paths)} files in {root} cannot be read: {_some(listed)}"
        )
        read = [i for i in range(len(paths)) if i not in failed]
        if not read:
            raise DatasetError(f"{remarks[-1]}. Nothing is left.")
        rows, classes = rows[read], [classes[i] for i in read]
        lost = sorted(found.keys() - set(empty) - set(classes))
        if lost:
            remarks.append(f"with them all of {_some(lost)}")
    return rows, classes


def _some(names: Sequence[str]) -> str:
    more = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {more} more" if more > 0 else "")


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds and does not hide, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def images_below(folder: Path, *, stop_at_first: bool = False) -> list[Path]:
    """Return the images at any depth that are not hidden, by name."""
    images = (path for path in _files_below(folder) if _is_image(path))
    return sorted(islice(images, 1) if stop_at_first else images)


def _files_below(folder: Path) -> Iterator[Path]:
    """Return what lies at any depth and is not hidden."""
    for parent, folders, _ in os.walk(folder):  # which does not follow links into circles
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for path in _entries(Path(parent)) if not path.is_dir())
