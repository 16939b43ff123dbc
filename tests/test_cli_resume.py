"""``gpuclf train --checkpoint``: a command that goes on where another was ended."""

import json

import numpy as np
import pytest
from resumed import make_data
from typer.testing import CliRunner

from gpuclf import TwoLayerNetClassifier
from gpuclf.cli import app
from gpuclf.cli.runs import read_log


@pytest.fixture
def train(tmp_path):
    """Return what runs the command on few samples, and gives its result and what it said."""
    X, y = make_data(np.uint8)
    np.savez(tmp_path / "samples.npz", X=X, y=y)

    def run(*options, model="two-layer", epochs=4):
        result = CliRunner().invoke(
            app,
            [
                *("train", model, "--data", str(tmp_path / "samples.npz"), "--backend", "numpy"),
                *("--json", str(tmp_path / "result.json"), *map(str, options)),
                *(() if model == "knn" else ("--epochs", str(epochs))),
            ],
        )
        if result.exit_code:
            return None, " ".join((result.output + str(result.exception or "")).split())
        return json.loads((tmp_path / "result.json").read_text()), result.output

    return run


def test_goes_on_with_the_losses_of_a_training_never_ended(train, tmp_path, monkeypatch):
    expected, _ = train()
    folder = tmp_path / "checkpoints"
    real = TwoLayerNetClassifier._record

    def is_ended(self, member, n_iter):
        if n_iter == 3:
            raise KeyboardInterrupt
        real(self, member, n_iter)

    with monkeypatch.context() as patch:
        patch.setattr(TwoLayerNetClassifier, "_record", is_ended)
        found, _ = train("--checkpoint", folder, "--log", tmp_path / "log.jsonl")
    assert found is None
    assert (folder / "checkpoint-00000002.safetensors").exists()
    again = ("--checkpoint", folder, "--every", 2, "--resume", "--log", tmp_path / "log.jsonl")
    found, said = train(*again)
    assert "epoch 1:" not in said
    assert found["loss_history"] == expected["loss_history"]
    assert found["val_accuracy_history"] == expected["val_accuracy_history"]
    assert found["test_accuracy"] == expected["test_accuracy"]
    # Its log is whole, and so is that of one that had ended.
    run = read_log(tmp_path / "log.jsonl")
    assert run["epochs"] == 4
    assert run["val_accuracy_history"] == expected["val_accuracy_history"]
    steps = np.array(expected["loss_history"]).reshape(4, -1)
    np.testing.assert_allclose(run["loss_history"], steps.mean(axis=1))
    assert train(*again)[0]["loss_history"] == expected["loss_history"]
    once_more = read_log(tmp_path / "log.jsonl")
    assert once_more["loss_history"] == run["loss_history"]


def test_says_what_does_not_fit(train, tmp_path):
    folder = tmp_path / "checkpoints"
    for options, words in (
        (("--resume",), "--resume needs --checkpoint"),
        (("--every", 2), "--every needs --checkpoint"),
    ):
        assert words in train(*options)[1]
    given = "--checkpoint", folder
    assert "--checkpoint does not apply to knn" in train(*given, model="knn")[1]
    assert "solver='sgd' only" in train(*given, "--solver", "lbfgs", model="softmax")[1]
    assert train(*given)[0] is not None
    assert "go on with resume=True (--resume)" in train(*given)[1]
    assert "max_iter is 4 there and 5 here" in train(*given, "--resume", epochs=5)[1]
