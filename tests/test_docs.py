"""What docs/ shows is run: Python in `pycon` blocks, and commands in `console` blocks."""

import doctest
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

import gpuclf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(pycon|console)\n(.*?)^```", re.M | re.S)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
QUICKEST = "gradients.md"
PAGES = sorted(
    (page for page in DOCS.rglob("*.md") if BLOCK.search(page.read_text())),
    key=lambda page: (page.name != QUICKEST, page),
)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Let `gpuclf` be this checkout's, in an empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "gpuclf"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpuclf "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GPUCLF_DATA": str(place),  # no CIFAR-10 there, and no download
    }


def run_commands(block, env):
    for line in block.replace("\\\n", "").splitlines():
        assert line.startswith("$ "), f"not a command: {line}"
        done = subprocess.run(
            line[2:], shell=True, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def run_page(text, name, env):
    names = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    written = []
    for found in BLOCK.finditer(text):
        kind, block = found.groups()
        if kind == "console":
            run_commands(block, env)
            continue
        line = text.count("\n", 0, found.start(2))
        test = doctest.DocTestParser().get_doctest(block, {}, name, name, line)
        test.globs = names  # not copied: a page's blocks go on from each other
        runner.run(test, out=written.append, clear_globs=False)
    assert not written, "".join(written)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_page_does_what_it_shows(page, commands):
    if page.stem == "own_images":
        pytest.importorskip("PIL", reason="Pillow is not installed")
    run_page(page.read_text(encoding="utf-8"), page.name, commands)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    X, y = gpuclf.datasets.make_synthetic(400, seed=0)
    few = SimpleNamespace(X_train=X[:300], y_train=y[:300], X_test=X[300:], y_test=y[300:])
    monkeypatch.setattr(gpuclf.datasets, "load_cifar10", lambda: few)
    names = {}
    for block in blocks[:2]:
        exec(block.replace('"cupy"', '"numpy"'), names)
    assert "'learning_rate'" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    sizes = {"W1": (3072, 4), "b1": (4,), "W2": (4, 10), "b2": (10,)}
    names |= {
        "reg": 0.1,
        "W": np.zeros((3072, 10)),
        "X": X.astype(np.float64),
        "y": y,
        "params": {name: rng.standard_normal(size) for name, size in sizes.items()},
        "A": X[:5],
        "B": X,
        "y_train": y,
        "f": lambda x: np.sum(x * x),
        "x": np.ones(3),
        "gradient": 2 * np.ones(3),
        "X_uint8": X,
        "images": X[:5],
    }
    exec(blocks[2], names)
    assert names["result"].passed
    assert len(blocks) == 3


def test_a_page_that_shows_something_else_fails(commands):
    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        run_page("```pycon\n>>> x = 1\n```\n\n```pycon\n>>> x + 1\n3\n```\n", "page", commands)
    with pytest.raises(AssertionError, match=r"\$ false"):
        run_page("```console\n$ true\n$ false\n```\n", "page", commands)


def test_every_public_name_has_a_page():
    listed = re.findall(r"^   (gpuclf\.\w+)$", (DOCS / "reference/index.rst").read_text(), re.M)
    assert sorted(listed) == sorted(f"gpuclf.{name}" for name in gpuclf.__all__)


def test_every_picture_s_function_is_shown():
    shown = (DOCS / "notebooks" / "pictures.py").read_text()
    for name in gpuclf.plots.__all__:
        assert name == "import_pyplot" or f"plots.{name}(" in shown, name


# Whoever adds one looks at it: CI has no network.
EXTERNAL = {"https://docs.dask.org"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_links_lead_to_files_or_are_known():
    outside = set()
    for page in (*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *DOCS.rglob("*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            if urlsplit(link).scheme:
                outside.add(link)
            elif DOCS not in page.parents:  # within docs/ Sphinx looks
                assert (page.parent / path).exists(), f"{page.name}: {link}"
                assert not anchor
    assert outside == EXTERNAL
    assert all(urlsplit(link).scheme == "https" and urlsplit(link).netloc for link in outside)


def test_every_block_is_of_a_kind_that_is_known():
    kinds = {"pycon", "console", "python", "bash", "yaml", "text", "toml", "cuda", "c", ""}
    for page in DOCS.rglob("*.md"):
        fences = re.findall(r"^```([\w{}-]*)$", page.read_text(), re.M)
        assert {kind for kind in fences if not kind.startswith("{")} <= kinds, page


@pytest.mark.nightly
@pytest.mark.parametrize(
    "page", sorted((DOCS / "notebooks").glob("*.py")), ids=lambda page: page.stem
)
def test_the_notebook_runs_in_jupyter(page, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat.v4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    _, *cells = page.read_text(encoding="utf-8").split("# %%\n")  # the first is the title
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": page.parent}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    for cell in notebook.cells:
        kinds = {kind for output in cell.outputs for kind in output.get("data", ())}
        assert ("plot_" in cell.source.rpartition("\n")[0]) <= ("image/png" in kinds), cell.source
        said = [output.get("text", "") for output in cell.outputs]
        assert not any("Warning" in text for text in said), said
