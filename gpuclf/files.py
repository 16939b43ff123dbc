"""Files that are written whole or not at all, and durations as people read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["format_seconds", "write_json", "write_whole"]

NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+)\]")


def format_seconds(seconds: float) -> str:
    """Write a duration with three digits and a fitting unit.

    Examples
    --------
    >>> format_seconds(0.0734), format_seconds(4000.0)
    ('73.4 ms', '1.11 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds * 1e9:.0f} ns"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the result as JSON, whole or not at all, creating the folder if need be."""
    text = json.dumps(content, indent=1)
    text = NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    write_whole(path, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, creating the folder if need be."""
    path = path.resolve()  # what a link points to, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe stays what it is
        path.write_text(text, encoding="utf-8", errors="replace")
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)
