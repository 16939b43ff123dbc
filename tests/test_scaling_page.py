"""docs/scaling.md: its code runs, and its tables are those of the record."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

da = pytest.importorskip("dask.array", reason="dask is not installed (extra cluster)")
pytest.importorskip("distributed", reason="distributed is missing (extra cluster)")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_record(monkeypatch, capsys):
    pytest.importorskip("psutil", reason="psutil is missing, which dask brings")
    record = ROOT / "benchmarks" / "results" / "scaling.json"
    monkeypatch.setattr("sys.argv", ["scaling", "--tables", str(record)])
    runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"), run_name="__main__")
    tables = PAGE.partition("<!-- scaling -->\n")[2].partition("<!-- end -->")[0]
    assert tables == capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of dask, zarr and Polars
def test_the_code_runs_from_top_to_bottom(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    polars = pytest.importorskip("polars", reason="Polars is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.integers(0, 100, (60, 3072), dtype=np.uint8) + 50 * y.astype(np.uint8)[:, None]
    np.save("labels.npy", y)
    for number, rows in enumerate(np.split(X, [25])):
        np.save(f"images-{number}.npy", rows)
        columns = {str(column): rows[:, column] for column in range(3072)}
        polars.DataFrame(columns).write_parquet(f"table-{number}.parquet")
    stored = zarr.create_array("images.zarr", shape=X.shape, chunks=(20, 1000), dtype="uint8")
    stored[:] = X
    for number, (row, label) in enumerate(zip(X, y, strict=True)):
        path = Path("images", str(label), f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
    names = {"__name__": "page"}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
        assert names["accuracy"] == 1.0
        assert names["net"].score(X, y) > 0.9
        np.testing.assert_array_equal(names["nearest"], y[:10])
        np.testing.assert_array_equal(names["labels"], y)
        alone = clone(names["search"]).set_params(n_jobs=None).fit(X, y)
        assert names["search"].best_params_ == alone.best_params_
        assert names["search"].best_score_ == alone.best_score_
        in_folders = np.argsort(y, kind="stable")  # and by name: 0, 12, 15, ... as text
        for name, expected in (("X_zarr", X), ("X_table", X), ("X_images", None)):
            sharded = names["gpuclf"].Sharded(names[name])
            found = np.concatenate(sharded.map(samples_of))
            if expected is None:
                order = [int(path.stem) for path in names["paths"]]
                assert sorted(order) == sorted(in_folders)
                expected = X[order]
            np.testing.assert_array_equal(found, expected)
    finally:
        for name in ("client", "cluster"):
            if name in names:
                names[name].close()


def samples_of(chunk):
    return chunk.X
