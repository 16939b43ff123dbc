"""Where the files of a data set lie in a folder, and what lies there in their place."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

__all__ = ["clues", "holds", "levels_below"]

# How far a nested folder is looked for: GPUCLF_DATA may be the top of a large disk.
_DEPTH = 3
_MOST_FOLDERS = 1_000
_MOST_ENTRIES = 2_000  # of a folder
_CIFAR_100 = (("train", "test", "meta"), ("train.bin", "test.bin", "fine_label_names.txt"))


def holds(folder: Path, names: tuple[str, ...]) -> bool:
    """Tell whether all of these files are in a folder."""
    return all(os.path.isfile(folder / name) for name in names)  # noqa: PTH113 (never raises)


def levels_below(root: Path) -> Iterator[list[Path]]:
    """Yield the folders in `root`, then the folders in these, down to the third level.

    What begins with a dot is left out, and so is a second way to the same folder.
    """
    level, seen = [root], {root.resolve()}
    for _ in range(_DEPTH):
        below = []
        for folder in (path for above in level for path in _entries(above, folders=True)):
            real = folder.resolve()
            if real not in seen and len(seen) < _MOST_FOLDERS:
                seen.add(real)
                below.append(folder)
        level = below
        yield level


def _entries(folder: Path, *, folders: bool = False) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            some = [e for e in islice(entries, _MOST_ENTRIES) if not e.name.startswith(".")]
        return sorted(folder / entry.name for entry in some if not folders or entry.is_dir())
    except OSError:
        return []


def clues(root: Path, archives: tuple[str, ...]) -> list[str]:
    """Say in sentences what lies in `root` that could be taken for CIFAR-10."""
    found = []
    for path in _entries(root):
        name = path.name.lower()
        if name.startswith("cifar-100") and name.endswith((".gz", ".tgz", ".tar")):
            found.append(f"{path} is an archive of CIFAR-100, which is another data set.")
        elif "cifar" in name and name.endswith((".gz", ".tgz", ".tar", ".zip")):
            found.append(
                f"{path} has not the name of an original archive ({' or '.join(archives)}): "
                "unpack it there."
            )
    for folder in [root, *(sub for level in levels_below(root) for sub in level)]:
        if any(holds(folder, names) for names in _CIFAR_100):
            found.append(f"{folder} holds CIFAR-100, which is another data set.")
        batches = [p.name for p in _entries(folder) if p.name.startswith(("data_batch", "test_b"))]
        if batches:
            found.append(
                f"{folder} holds {', '.join(batches[:6])}: the six files must be named "
                "data_batch_1 to data_batch_5 and test_batch, all with .bin in the binary version."
            )
    return found
