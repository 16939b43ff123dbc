"""Downloads that go on where they stopped."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuclf.datasets.image_dataset import DatasetError, file_md5, file_size
from gpuclf.files import sweep

__all__ = ["download"]

_ATTEMPTS = 4
_RETRY_WAIT_S = 1.0
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18


def download(url: str, md5: str, root: Path, *, alone: bool) -> None:
    """Fetch an archive into `root`; it is there afterwards only if it is right.

    Parameters
    ----------
    url, md5 : str
    root : Path
        Made if need be.
    alone : bool
        Whether no other process fetches into `root` meanwhile. Then what arrived before a failure
        is kept, and the next call goes on from there.

    Raises
    ------
    DatasetError
        With the remedy.
    """
    import requests

    archive = url.rpartition("/")[2]
    prefix, suffix = f".{archive}.", ".part"
    own = f"{archive}{suffix}" if alone else f"{prefix}{secrets.token_hex(8)}{suffix}"
    part = root / own
    by_hand = (
        f"Or download {url} by other means, put it into {root} and load again; or pass a "
        "folder that has CIFAR-10 as data_dir=."
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, prefix, suffix)
        try:
            _fetch_patiently(url, part)
            found = file_md5(part)
            if found == md5:
                part.replace(root / archive)
                return
            part.unlink()
        finally:
            if not alone:
                part.unlink(missing_ok=True)
    except requests.RequestException as error:
        kept = ""
        if part.is_file():
            kept = f" The {file_size(part):,} bytes that arrived are kept; load again to go on."
        raise DatasetError(
            f"CIFAR-10 could not be downloaded from {url}: {error}.{kept} {by_hand}"
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The download of {url} could not be written to {root} ({error}). Pass "
            "a folder that is writable and has 400 MB free as data_dir=, or set the environment "
            f"variable GPUCLF_DATA to one."
        ) from error
    raise DatasetError(
        f"What {url} sent is not CIFAR-10: expected MD5 {md5}, found {found}. It was deleted. "
        f"Load again to start afresh. {by_hand}"
    )


def _fetch_patiently(url: str, part: Path) -> None:
    import requests

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _fetch(url, part)
        except requests.RequestException as error:
            answer = error.response
            refused = answer is not None and 400 <= answer.status_code < 500
            if refused or attempt == _ATTEMPTS:
                raise
            time.sleep(attempt * _RETRY_WAIT_S)


def _fetch(url: str, part: Path) -> None:
    """Append what is missing to the part that is there."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    # Compressed on the way, the byte counts of server and file would not be the same.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        sent_range = answer.headers.get("Content-Range", "")
        if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
            if sent_range == f"bytes */{start}":
                return
            part.unlink()
            raise requests.ConnectionError("the partial file did not fit and was removed")
        answer.raise_for_status()
        # A server without byte ranges answers 200 and sends the whole file.
        resumed = sent_range.startswith(f"bytes {start}-") and answer.status_code == 206
        if not resumed:
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
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
