import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICKEST = "spiral"  # comes first, and is the essential one
EXAMPLES = sorted((ROOT / "examples").glob("*.py"), key=lambda path: (path.stem != QUICKEST, path))


@pytest.mark.essential_cases(1, in_ci=1)  # `make docs` runs them all
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_saves_its_picture(path, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, path, "--quick", "--out", picture],
        capture_output=True,
        text=True,
        timeout=6000,
        check=False,
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "Agg",
            "NUMBA_DISABLE_JIT": "1",  # to compile would take longer than all the rest
            "PYTHONWARNINGS": "error::RuntimeWarning,error::UserWarning,"
            "ignore:SGD stopped at max_iter:UserWarning",
        },
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]  # and nothing else


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("path", EXAMPLES[::3], ids=lambda path: path.stem)
def test_without_matplotlib_the_example_says_so_at_once(path, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none in tests')")
    done = subprocess.run(
        [sys.executable, path, "--quick"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode != 0
    assert "pip install matplotlib" in done.stderr
    assert done.stdout == ""  # before any work


def test_there_are_examples():
    assert EXAMPLES
