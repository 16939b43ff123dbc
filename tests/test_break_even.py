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
