"""What documents and page say of a GPU, from a record that is made up."""

import json
import sys
from pathlib import Path

import pytest
from tiny_cases import CEILINGS, make_inputs, tiny_case

from gpuclf.bench import Implementation
from gpuclf.bench.measure.timing import new_row
from gpuclf.bench.report.records import completed, read_record

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the benchmarks are not installed

from benchmarks import acceptance, acceptance_tables

TIMES = {
    "gpuclf uint8": (60e-6, 30e-6),
    "PyTorch eager": (320e-6, 90e-6),
    "JAX jit": (290e-6, 8e-5),
}


def made_up_row(case, name, device_s, host_s):
    implementation = Implementation(name, "cupy", "uint8", prepare=None, device="cuda")
    row = new_row(case, make_inputs(), implementation, {"cuda": CEILINGS})
    row.median_s = row.p20_s = row.p80_s = device_s + host_s
    row.times_s, row.n = [row.median_s] * 5, 5
    found = {"p20": 1e-9, "p80": 1.0, "n": 5, "samples": []}
    row.device_s = found | {"median": device_s, "with_host": name.startswith("JAX")}
    row.host_s = found | {"median": host_s}
    row.queued_s = found | {"median": device_s}
    row.share_of_floor = row.floor_s / device_s
    return row.as_dict()


@pytest.fixture
def record():
    case = tiny_case()
    rows = [made_up_row(case, name, *times) for name, times in TIMES.items()]
    rows_of_net = [row | {"case": "net"} for row in rows]
    late = rows_of_net[2] | {"status": "unavailable", "reason": "out of time", "device_s": None}
    machine = {"gpu": {"usable": True, "name": "Pretend 100", "reason": "CuPy on Pretend 100"}}
    machine |= {"cpu": "Some CPU", "versions": {"numpy": "2.4"}}
    results = {
        "environment": {"machine": machine, "commit": "abc", "data": "synthetic images"},
        "ceilings": CEILINGS,
        "timings: softmax": {"case": case.as_dict(), "rows": rows},
        "timings: net": {"case": case.as_dict(), "rows": [rows_of_net[0], late]},
        "parity": None,
    }
    steps = [
        {"name": n, "status": "passed", "seconds": 1.0, "result": r} for n, r in results.items()
    ]
    return {
        "dry_run": False, "status": "complete", "started": "2026-01-02T03:04:05", "elapsed_s": 9,
        "settings": {"samples": 40}, "steps": steps,
    }  # fmt: skip


def test_the_table_has_device_and_host_times(record):
    lines = acceptance_tables.gpu_table(record).splitlines()
    assert lines[0] == "|  | softmax | net |"
    assert lines[2] == "| gpuclf uint8 | 60.0 us (30.0 us) | 60.0 us (30.0 us) |"
    assert lines[3] == "| PyTorch eager | 320 us (90.0 us) | - |"
    assert lines[4] == r"| JAX jit | 290 us\* (80.0 us) | - |"
    assert "Pretend 100, 2026-01-02" in lines[-1]
    assert "assumed" not in lines[-1]
    record["steps"][2]["result"]["assumed"] = ["bytes_per_s of the floor"]
    assert "Floors were assumed" in acceptance_tables.gpu_table(record)


def test_documents_and_page_are_redrawn(record, tmp_path):
    path, page, document = (tmp_path / name for name in ("a.json", "gpu.html", "README.md"))
    path.write_text(json.dumps(record))
    document.write_text("# Title\n\n<!-- gpu -->\nnot yet measured\n<!-- end -->\nmore\n")
    arguments = [str(path), "--page", str(page), "--into", str(document)]
    assert acceptance_tables.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("# Title\n\n<!-- gpu -->\n|  | softmax | net |")
    assert text.endswith("<!-- end -->\nmore\n")
    assert "not yet measured" not in text
    assert acceptance_tables.main(arguments) == 0
    assert document.read_text() == text
    html = page.read_text()
    assert "Pretend 100" in html
    assert "host time" in html
    assert "60.0 µs" in html


def test_its_rows_are_a_record_of_the_benchmark(record, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(acceptance_tables.bench_record(record)))
    found = read_record(path)
    assert found == completed(found)
    assert [row["implementation"] for row in found["rows"]][:3] == list(TIMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"dry_run": True}, "dry run"), ({"steps": []}, "no timings"), ({}, "has no place")],
)
def test_what_cannot_be_written_is_told(record, tmp_path, capsys, change, said):
    path, document = tmp_path / "a.json", tmp_path / "README.md"
    path.write_text(json.dumps(record | change))
    document.write_text("nothing")
    assert acceptance_tables.main([str(path), "--into", str(document)]) == 2
    assert said in capsys.readouterr().out
    assert document.read_text() == "nothing"


def test_the_acceptance_prints_it_too(record, capsys):
    from rich.console import Console

    acceptance.print_record(record, Console(width=150))
    printed = capsys.readouterr().out
    assert "290 us*" in printed
