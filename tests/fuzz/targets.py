"""What is fuzzed: each target takes bytes, and may raise what it raises on purpose."""

import contextlib
import json
import random
import tempfile
from pathlib import Path

from gpuclf.bench.measure import break_even
from gpuclf.bench.report import schema
from gpuclf.bench.report.comparison import compare_records
from gpuclf.bench.report.markdown import rows_markdown
from gpuclf.bench.report.records import parse_record
from gpuclf.datasets import archive, strict_pickle
from gpuclf.datasets.archive import ArchiveError
from gpuclf.datasets.strict_pickle import ForbiddenPickleError, MalformedPickleError, PickledArray

CORPUS = Path(__file__).parent / "corpus"
_WANTED = ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")
_PLAIN = {int, bool, bytes, str, type(None)}


def read_pickle(data):
    """Read a pickle; what comes out holds nothing but plain values."""
    try:
        content = strict_pickle.read_pickle(data)
    except (ForbiddenPickleError, MalformedPickleError):
        return
    parts = list(content.values()) if type(content) is dict else [content]
    for part in parts:
        if type(part) is list:
            assert set(map(type, part)) <= _PLAIN
        elif type(part) is PickledArray:
            assert part.array is None or part.array.nbytes <= len(data)


def read_tar(data):
    """Take the members of a tar out into an empty folder; nothing else comes to be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "inner")
        path.mkdir()
        wanted = {name: path / name.rpartition("/")[2] for name in _WANTED}
        with contextlib.suppress(ArchiveError):
            archive._extract(archive._Bounded(_Stream(data)), wanted, 1 << 20)
        assert [p.name for p in Path(folder).iterdir()] == ["inner"]
        assert {p.name for p in path.iterdir()} <= {"data_batch_1", "test_batch"}
        assert all(p.is_file() and not p.is_symlink() for p in path.iterdir())


class _Stream:
    """Stands for a gzipped file: a mutation of what gzip has packed would never be unpacked."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def read(self, n):
        start, self._at = self._at, self._at + n
        return self._data[start : self._at]


def with_right_sums(data):
    """Return a tar whose headers have the checksum that belongs to them, as far as they go."""
    data = bytearray(data)
    at = 0
    while at + 512 <= len(data):
        header = data[at : at + 512]
        header[148:156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            break
        at += 512 + max(size, 0) + -size % 512
    return bytes(data)


def read_record(data):
    """Read a record, compare it with itself and write its table; the gate passes what it judged."""
    try:
        record = parse_record(data)
    except ValueError:
        return
    compared = compare_records(record, record)
    assert not compared.regressions
    assert {row.verdict for row in compared.rows if row.ratio is None} <= {"not comparable"}
    assert compared.passed == bool(compared.judged)
    rows_markdown(record).encode()


def read_break_even(data):
    """Read a break-even file; what comes out is a size in bytes."""
    with contextlib.suppress(ValueError):
        assert 1 <= break_even.parse_break_even(data)["bytes"] < 1 << 63


ODD = [None, True, -1, 0, 1, 3.5, "", "a", [], {}, [1], {"a": 1}, 1e999, -1e999, 10**400, 2**70]


def with_an_odd_value(data):
    """Return JSON with a value somewhere in it that is unlike the one before, the same each time.

    Of random changes to its bytes most are no JSON any more.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data
    rng, where = random.Random(data), content
    while isinstance(where, dict | list) and where:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        key = rng.choice(keys)
        if rng.random() < 0.4 or not isinstance(where[key], dict | list):
            if rng.random() < 0.2:
                del where[key]
            else:
                where[key] = rng.choice(ODD)
            break
        where = where[key]
    return json.dumps(content).encode()


# The modules are those whose lines show whether an input did something new.
TARGETS = {
    "pickle": (read_pickle, strict_pickle, bytes),
    "tar": (read_tar, archive, with_right_sums),
    "record": (read_record, schema, with_an_odd_value),
    "break_even": (read_break_even, break_even, with_an_odd_value),
}
