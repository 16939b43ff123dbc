"""Standard output as the command line writes to it: whatever becomes of it, the work goes on."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

__all__ = ["Screen"]


class Screen:
    """A file that passes on what is written; what cannot be written is lost, and no more.

    Characters that the encoding lacks become question marks. If nobody reads any more (``| head``),
    nothing is written any more; a full disk fails the command, when it has done everything else.

    Attributes
    ----------
    has_failed : bool
        Something was lost, and not because nobody wanted it.
    """

    def __init__(self, on_stderr: bool = False) -> None:
        self.open(on_stderr=on_stderr)

    def open(self, *, on_stderr: bool) -> None:
        """Begin again: on standard error where standard output is for a result."""
        self._on_stderr = on_stderr
        self.has_failed = self._is_lost = False

    @property
    def _stream(self) -> Any:
        stream = sys.stderr if self._on_stderr else sys.stdout
        return getattr(stream, "rich_proxied_file", stream)  # or rich would go in a circle

    @property
    def encoding(self) -> str:
        """What the stream writes characters in."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return bool(self._stream is not None and self._stream.isatty())

    def fileno(self) -> int:
        """Return the stream's number."""
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        """Write, as far as that is possible."""
        if not self._is_lost and self._stream is not None:
            fitting = text.encode(self.encoding, "replace").decode(self.encoding)
            try:
                self._stream.write(fitting)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        if not self._is_lost and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        with suppress(OSError, ValueError):  # or the interpreter fails at its end, in flushing
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            self.has_failed = True
            if not self._on_stderr:
                with suppress(OSError, ValueError):
                    print(f"error: what is said could not be written: {error}", file=sys.stderr)
