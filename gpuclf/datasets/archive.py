"""The published archives of CIFAR-10: a few files, taken out of a gzipped tar."""

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

__all__ = ["ArchiveError", "extract"]

_BLOCK = 512
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
# The larger published archive has nine members and 178 MiB.
MOST_MEMBERS = 1_000
MOST_BYTES = 256 << 20


class ArchiveError(ValueError):
    """Bytes are no complete gzipped tar archive, or one with absurd sizes."""


def extract(archive: Path, wanted: Mapping[str, Path], largest: int) -> None:
    """Write members of a .tar.gz to files.

    Parameters
    ----------
    archive : Path
    wanted : mapping of str to Path
        From a member's name to the file that it is written to. Other members are passed over, and
        so is one of these names that is no ordinary file.
    largest : int
        How many bytes one of these may take.

    Raises
    ------
    ArchiveError
        It is damaged, or takes more than a published archive could.
    OSError
        A file cannot be written.

    Notes
    -----
    Only bytes come from the archive. Its names, links, owners and modes never reach the file
    system. Extended headers (PAX, GNU) are passed over like other members: names of less than 100
    characters and sizes of less than 8 GiB need none.

    Source: the format ustar, POSIX.1-1988.
    """
    try:
        with gzip.open(archive) as file:
            _extract(_Bounded(file), wanted, largest)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{type(error).__name__}: {error}") from None


class _Bounded:
    """A stream that ends in an error rather than never."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self._left = MOST_BYTES

    def read(self, n: int) -> bytes:
        """Return n bytes, fewer only at the end."""
        content = self._file.read(n)
        self._left -= len(content)
        if self._left < 0:
            raise ArchiveError(f"it would take more than {MOST_BYTES:,} bytes")
        return content

    def copy(self, n: int, target: IO[bytes] | None) -> None:
        """Pass n bytes on, or over."""
        while n:
            content = self.read(min(n, 1 << 20))
            if not content:
                raise ArchiveError("it ends within a member")
            n -= len(content)
            if target is not None:
                target.write(content)


def _extract(stream: _Bounded, wanted: Mapping[str, Path], largest: int) -> None:
    for _ in range(MOST_MEMBERS):
        header = stream.read(_BLOCK)
        if not header.strip(b"\0"):  # the end is marked by blocks of zeros
            while stream.read(1 << 20):  # the checksum of gzip comes last
                pass
            return
        name, size = _name_and_size(header)
        ordinary = header[156:157] in (b"0", b"\0")
        path = wanted.get(name) if ordinary else None
        if path is None:
            stream.copy(size, None)
        elif size > largest:
            raise ArchiveError(f"{name} would take {size:,} bytes")
        else:
            with path.open("wb") as file:
                stream.copy(size, file)
        stream.copy(-size % _BLOCK, None)
    raise ArchiveError(f"more than {MOST_MEMBERS:,} members")


def _name_and_size(header: bytes) -> tuple[str, int]:
    if len(header) < _BLOCK:
        raise ArchiveError("it ends within a header")
    # The sum of the header's bytes, its own field counted as spaces.
    if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise ArchiveError("a header with a wrong checksum")
    return header[:100].partition(b"\0")[0].decode("ascii", "replace"), _number(header[124:136])


def _number(field: bytes) -> int:
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise ArchiveError("a header with something other than a number")
    return int(digits[1], 8)
