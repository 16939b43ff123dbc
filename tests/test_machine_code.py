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


def test_what_takes_long_is_announced_once_before_it_is_compiled(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(machine_code, "DURATIONS", {"slow_operation": "about 9 s"})
    machine_code.announced.clear()
    seen = []
    for name in ("slow_operation", "other"):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / name))
        function = compiled_in(f"gpuclf.kernels.{name}.loops")

        def compile_and_look(*arguments, original=function._compiler.compile):
            seen.append(len(caplog.records))
            return original(*arguments)

        monkeypatch.setattr(function._compiler, "compile", compile_and_look)
        assert (function(1), function(1.5), function(1j)) == (2, 2.5, 1 + 1j)  # three versions
        said = [record.getMessage() for record in caplog.records]
        assert all("once more, for another kind of arrays: at most 9 s" in x for x in said[1:])
        caplog.clear()
    assert seen == [1, 2, 2, 0, 0, 0]  # said before the first and the second one, and never again
    machine_code.announced.clear()


def compiled_in(module):
    def add_one(x):
        return x + 1

    add_one.__module__ = module
    return compiled(add_one)


@pytest.mark.parametrize("keeps", [True, False])
def test_an_announcement_says_where_the_code_is_kept(tmp_path, monkeypatch, caplog, keeps):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine_code, "DURATIONS", {"tests": "about 9 s", "": "about 9 s"})
    machine_code.announced.clear()
    if not keeps:
        original = numba.njit

        def njit(cache=False, **options):
            if cache:
                raise RuntimeError("no locator available")
            return original(**options)

        monkeypatch.setattr(numba, "njit", njit)
    function = compiled_in("gpuclf.kernels.tests.loops")
    assert function(1) == 2
    assert "compiling the tests once, about 9 s (" in caplog.text
    assert ("gpuclf info --warm-up does it ahead" in caplog.text) is keeps
    assert ("set NUMBA_CACHE_DIR" in caplog.text) is not keeps
    caplog.clear()
    machine_code.announced.clear()
    again = compiled_in("gpuclf.kernels.tests.loops")
    assert again(1) == 2
    assert bool(caplog.records) is not keeps  # what was kept is not compiled again
    machine_code.announced.clear()
