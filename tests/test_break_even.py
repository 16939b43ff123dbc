import sys

from gpuclf.bench.measure import break_even
from gpuclf.bench.measure.break_even import measured_break_even, remember_break_even


def test_the_break_even_is_remembered_for_this_machine_only(monkeypatch, tmp_path):
    path = tmp_path / "new" / "break_even.json"
    monkeypatch.setattr(break_even, "_file", lambda: path)
    assert measured_break_even() is None
    remember_break_even(1000)
    assert measured_break_even() == 1000
    monkeypatch.setattr(break_even, "_machine_id", lambda: "another machine")
    assert measured_break_even() is None
    path.write_text("[")
    assert measured_break_even() is None


def test_without_pooch_it_lies_in_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)  # importing it raises an ImportError
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measured_break_even() is None
    remember_break_even(7)
    assert measured_break_even() == 7
    assert (tmp_path / "gpuclf" / "break_even.json").exists()
