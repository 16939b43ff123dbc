"""Loops are compiled whatever became of numba's cache."""

import os
import shutil
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from gpuclf.kernels.building import machine_code  # noqa: E402
from gpuclf.kernels.building.machine_code import compiled  # noqa: E402


def add_one(x):
    return x + 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for numba's cache that holds one function; what was said is forgotten."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    machine_code.damaged_caches.clear()
    assert compiled(add_one)(1) == 2
    return tmp_path


def files(cache, ending):
    return list(cache.rglob(f"*.{ending}"))


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "index empty": ("nbi", lambda path: path.write_bytes(b"")),
    "index cut": ("nbi", lambda path: path.write_bytes(path.read_bytes()[:40])),
    "index of other bytes": ("nbi", lambda path: path.write_bytes(b"cat\n" * 10)),
    "index a folder": ("nbi", as_folder),
    "code empty": ("nbc", lambda path: path.write_bytes(b"")),
    "code cut": ("nbc", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "code something else": ("nbc", lambda path: path.write_bytes(b"\x80\x02K\x01.")),
}


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_named_once_and_mended(cache, caplog, damage):
    ending, break_it = DAMAGES[damage]
    for path in files(cache, ending):
        break_it(path)
    assert compiled(add_one)(1) == 2
    assert len(caplog.records) == 1
    assert "numba's cache in" in caplog.text
    assert str(cache) in caplog.text

    caplog.clear()
    again = compiled(add_one)
    assert again(1) == 2
    if damage != "index a folder":
        assert sum(again.stats.cache_hits.values()) == 1
    assert not caplog.records


@pytest.mark.slow
def test_a_cache_that_cannot_be_mended_is_done_without(cache, caplog, monkeypatch):
    for path in files(cache, "nbi"):
        path.write_bytes(b"")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    again = compiled(add_one)
    assert again(1) == 2
    assert again(1.5) == 2.5
    assert not again._cache._enabled
    assert len(caplog.records) == 1


@pytest.mark.slow
def test_a_cache_that_vanished_is_no_matter(cache, caplog):
    for path in Path(cache).iterdir():
        shutil.rmtree(path)
    assert compiled(add_one)(1) == 2
    assert not caplog.records
