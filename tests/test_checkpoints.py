import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from models_to_save import DAMAGES, assert_same

from gpuclf import Standardized, Streamed
from gpuclf.saving import checkpoints as module
from gpuclf.saving.checkpoints import Checkpoints, fingerprint
from gpuclf.training import History

SETTINGS = {"class": "SoftmaxClassifier", "reg": 0.1, "data": "abc"}


def state_at(position, lib=None):
    """Return the state of a fleet of two and its generator, as training has them."""
    rng = np.random.default_rng(position)

    def arrays():
        values = {"W": rng.standard_normal((5, 3)).astype(np.float32), "b": np.zeros(3)}
        return values if lib is None else {k: lib.asarray(v) for k, v in values.items()}

    members = [
        {
            "params": arrays(),
            "velocity": arrays() if k else None,
            "history": History(loss=[0.5] * position, learning_rate=[1e-3] * position),
            "running": bool(k),
        }
        for k in range(2)
    ]
    return {"epoch": position, "members": members, "rng": rng, "shape": (2, 3)}


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path, lib):
    folder = tmp_path / "of training"
    assert Checkpoints(folder, SETTINGS).begin(resume=True) is None
    assert not folder.exists()
    for position in (1, 2, 3):
        Checkpoints(folder, SETTINGS).save(position, state_at(position, lib))
    assert_same(Checkpoints(folder, SETTINGS).begin(resume=True), state_at(3))


def test_the_last_two_are_kept_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "checkpoint-best.safetensors").write_text("mine", encoding="utf-8")
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for position in (8, 9, 10, 99_999_999, 100_000_000):  # by number, not by letter
        checkpoints.save(position, state_at(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-100000000.safetensors",
        "checkpoint-99999999.safetensors",
        "checkpoint-best.safetensors",
        "notes.txt",
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for position in (4, 5):
        checkpoints.save(position, state_at(position))
    last = tmp_path / "checkpoint-00000005.safetensors"
    rng, whole = np.random.default_rng(0), last.read_bytes()
    n_refused = 0
    for _ in range(20):
        last.write_bytes(DAMAGES[damage](whole, rng))
        try:
            module._read(last)
        except ValueError as error:
            assert str(last) in str(error)  # noqa: PT017 - not all of them are refused
        else:
            continue
        n_refused += 1
        with pytest.warns(UserWarning, match="going on from checkpoint-00000004") as caught:
            found = checkpoints.begin(resume=True)
        assert_same(found, state_at(4))
        assert caught[0].filename == __file__
    assert n_refused == 20 or (n_refused and damage in ("odd_content", "odd_arrays"))


def test_an_unreadable_checkpoint_is_none_of_the_two_that_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for position in (4, 5):
        checkpoints.save(position, state_at(position))
    (tmp_path / "checkpoint-00000005.safetensors").write_bytes(b"")
    again = Checkpoints(tmp_path, SETTINGS)
    with pytest.warns(UserWarning, match="going on from"):
        again.begin(resume=True)
    again.save(6, state_at(6))  # 5 is not written again where checkpoints come more seldom
    assert sorted(path.stem[-1] for path in tmp_path.iterdir()) == ["4", "6"]
    (tmp_path / "checkpoint-00000006.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="going on from"):
        again.begin(resume=True)
    again.save(6, state_at(6))
    assert_same(Checkpoints(tmp_path, SETTINGS).begin(resume=True), state_at(6))


def test_where_none_can_be_read_training_does_not_begin_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for position in (4, 5):
        checkpoints.save(position, state_at(position))
        (tmp_path / f"checkpoint-{position:08d}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: .*5.*4"):
        checkpoints.begin(resume=True)


def test_other_data_and_settings_are_refused_by_name(tmp_path):
    Checkpoints(tmp_path, SETTINGS).save(1, state_at(1))
    for change, words in (
        ({"reg": 0.2}, "reg is 0.1 there and 0.2 here"),
        ({"data": "xyz"}, "data is 'abc' there and 'xyz' here"),
        ({"momentum": 0.9}, "momentum is None there and 0.9 here"),
    ):
        with pytest.raises(ValueError, match=words):
            Checkpoints(tmp_path, SETTINGS | change).begin(resume=True)


def test_checkpoints_are_not_lost_to_a_new_training(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    assert checkpoints.begin(resume=False) is None
    checkpoints.save(1, state_at(1))
    with pytest.raises(FileExistsError, match=r"checkpoint-00000001.*resume=True"):
        checkpoints.begin(resume=False)


def test_a_state_that_cannot_be_stored_is_refused_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    with pytest.raises(TypeError, match=r"state.members.0.augment holds what a checkpoint cannot"):
        checkpoints.save(1, {"members": [{"augment": lambda X, rng: X}]})
    assert not [*tmp_path.iterdir()]


def test_a_generator_that_two_share_stays_one(tmp_path):
    rng = np.random.default_rng(0)
    Checkpoints(tmp_path, SETTINGS).save(1, {"one": rng, "two": rng, "other": [rng]})
    found = Checkpoints(tmp_path, SETTINGS).begin(resume=True)
    assert found["one"] is found["two"] is found["other"][0]


def test_a_model_is_no_checkpoint(tmp_path):
    Checkpoints(tmp_path, SETTINGS).save(1, state_at(1))
    from gpuclf import load

    with pytest.raises(ValueError, match="holds a 'checkpoint', not a model"):
        load(tmp_path / "checkpoint-00000001.safetensors")


# Writes checkpoints until it is killed, and says which are written.
WRITER = """
    import sys, numpy as np
    from gpuclf.saving.checkpoints import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], {})
    state = checkpoints.begin(resume=True)
    position = 0 if state is None else state["position"]
    while True:
        position += 1
        W = np.full((int(sys.argv[2]), 100), position)
        checkpoints.save(position, {"position": position, "W": W})
        print(position, flush=True)
"""


def kill_while_writing(folder, n_times, seed):
    rng = np.random.default_rng(seed)
    known = 0
    for _ in range(n_times):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), folder, str(rng.integers(1, 3000))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(rng.integers(1, 20)):
            known = int(process.stdout.readline())
        process.kill()
        said = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        known = int(said[-1]) if said else known
        found = Checkpoints(folder, {}).begin(resume=True)  # a warning would be an error here
        assert found["position"] in (known, known + 1)  # written, and not yet said
        assert (found["W"] == found["position"]).all()
        assert len([*folder.iterdir()]) <= 3  # killed before the oldest was removed
        known = found["position"]


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is for POSIX")
def test_a_process_killed_while_it_writes_loses_nothing(tmp_path):
    kill_while_writing(tmp_path, 3, seed=0)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is for POSIX")
def test_many_processes_killed_while_they_write_lose_nothing(tmp_path):
    kill_while_writing(tmp_path, 60, seed=1)


# --------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_the_numbers_not_of_the_library(lib, monkeypatch):
    X, y = np.arange(60.0).reshape(20, 3), np.arange(20)
    expected = fingerprint(X, y, None)
    assert fingerprint(lib.asarray(X), lib.asarray(y), None) == expected
    monkeypatch.setattr(module, "BLOCK_BYTES", 50)  # a few rows at a time
    assert fingerprint(X, y, None) == expected
    assert fingerprint(np.asfortranarray(X), y.tolist(), None) == expected


def test_any_change_of_the_data_changes_the_fingerprint():
    X, y = np.arange(60.0).reshape(20, 3), np.array(["a", "b"] * 10)
    one_other, labels = X.copy(), y.copy()
    one_other[-1, -1], labels[3] = 0.5, "a"
    weights = np.ones(20)
    variants = [
        *((X, y), (one_other, y), (X, labels), (X.astype(np.float32), y), (X, y, None)),
        *(
            (X, y, weights),
            (X.reshape(10, 6), y),
            (X, y.astype(object)),
            (X, labels.astype(object)),
        ),
        *((Standardized.fit(X), y), (Standardized(X, 0.0, 1.0), y), (X[:0], y), (X, y, 1.5)),
    ]
    assert len({fingerprint(*values) for values in variants}) == len(variants)
    assert fingerprint(Streamed(X, "numpy"), y) == fingerprint(X, y)
