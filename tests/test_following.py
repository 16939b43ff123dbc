"""The recipes of docs/following.md run, and the other program has what they gave it."""

import re
from pathlib import Path

import pytest

import gpuclf

PAGE = Path(__file__).parent.parent / "docs" / "following.md"
BOARD, MLFLOW = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def run(recipe):
    found = {}
    exec(recipe, found)
    return found["model"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # MLflow's default is a database, which its small distribution cannot write.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_every_epoch(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    model = run(BOARD)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    for name in (b"loss", b"learning", b"accuracy/training", b"accuracy/validation"):
        assert written.count(name) >= model.n_iter_, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_has_every_epoch_the_settings_and_the_model(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    model = run(MLFLOW)
    (run_id,) = (path.name for path in tmp_path.glob("mlruns/0/*") if path.is_dir())
    client = mlflow.tracking.MlflowClient()
    logged = client.get_metric_history(run_id, "validation_accuracy")
    assert [metric.value for metric in logged] == model.val_accuracy_history_
    assert [metric.step for metric in logged] == [1, 2, 3, 4, 5]
    assert client.get_run(run_id).data.params["max_iter"] == "5"
    (path,) = tmp_path.glob("mlruns/0/*/artifacts/model.safetensors")
    assert gpuclf.load(path).get_params() == model.get_params()
