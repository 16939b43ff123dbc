"""A training that goes on from a checkpoint ends with the bits of one never interrupted."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from models_to_save import DAMAGES
from resumed import MODELS, fleet, learned, make_data

from gpuclf import FleetEnsemble, SoftmaxClassifier, Standardized, Streamed, TwoLayerNetClassifier
from gpuclf.augment import horizontal_flip
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.training import DivergedError

EPOCHS = 7


class StoppedError(BaseException):
    """Stands for Ctrl-C: no Exception, so that nobody catches it."""


def after(epochs):
    def callback(epoch, *_):
        if epoch == epochs:
            raise StoppedError

    return callback


def assert_learned_the_same(found, expected):
    for model, other in zip(found, expected, strict=True):
        one, two = learned(model), learned(other)
        assert one.keys() == two.keys()
        for name, value in two.items():
            assert one[name].dtype == value.dtype, name
            np.testing.assert_array_equal(one[name], value, err_msg=name)


def interrupted(make, data, folder, epochs, **options):
    """Train until some epochs are done, and then to the end, as in another process."""
    with pytest.raises(StoppedError):
        make().fit(*data, checkpoint=folder, callback=after(epochs), **options)
    return make().fit(*data, checkpoint=folder, resume=True, **options)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_goes_on_with_the_bits_of_a_training_never_interrupted(lib, kind, epochs, tmp_path):
    data = [lib.asarray(v) for v in make_data()]
    make = partial(MODELS[kind], max_iter=EPOCHS)
    found = interrupted(make, data, tmp_path / "new", epochs)
    assert_learned_the_same([found], [make().fit(*data)])
    assert type(found.params_[min(found.params_)]) is type(data[0])
    assert found.n_iter_ == EPOCHS


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("epochs", range(1, EPOCHS))
@pytest.mark.parametrize("kind", ["softmax", "net"])
def test_fleets_go_on_with_those_that_stop_and_diverge(kind, epochs, tmp_path):
    X, y = make_data()
    expected = fleet(kind, max_iter=EPOCHS)
    errors = fit_together(expected, X, y)
    stops = [model.n_iter_ for model, error in zip(expected, errors, strict=True) if error is None]
    assert isinstance(errors[-1], DivergedError)
    assert min(stops) < max(stops) <= EPOCHS  # some stop before the others
    with pytest.raises(StoppedError):
        fit_together(
            fleet(kind, max_iter=EPOCHS), X, y, checkpoint=tmp_path, callback=after(epochs)
        )
    found = fleet(kind, max_iter=EPOCHS)
    of_found = fit_together(found, X, y, checkpoint=tmp_path, resume=True)
    assert list(map(repr, of_found)) == list(map(repr, errors))
    assert_learned_the_same(found, expected)


@pytest.mark.essential_cases(2)
def test_fleets_go_on_on_every_library(lib, tmp_path):
    X, y = (lib.asarray(v) for v in make_data())
    expected, found = fleet("net", max_iter=EPOCHS), fleet("net", max_iter=EPOCHS)
    fit_together(expected, X, y)
    with pytest.raises(StoppedError):
        fit_together(fleet("net", max_iter=EPOCHS), X, y, checkpoint=tmp_path, callback=after(3))
    fit_together(found, X, y, checkpoint=tmp_path, resume=True)
    assert_learned_the_same(found, expected)


FORMS = {
    "bytes": lambda X: X.astype(np.uint8),
    "float64": lambda X: X.astype(np.float64),
    "lists": lambda X: X.tolist(),
    "standardized": Standardized.fit,
    "streamed": lambda X: Streamed(X, "numpy"),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_form_the_samples_have(form, tmp_path):
    X, y = make_data()
    data = FORMS[form](X), y, np.arange(len(y)) % 3
    make = partial(MODELS["net"], max_iter=EPOCHS, augment=None)
    assert_learned_the_same([interrupted(make, data, tmp_path, 3)], [make().fit(*data)])


@pytest.mark.parametrize("held_out", [True, False], ids=["held out", "given"])
def test_goes_on_with_its_validation(held_out, tmp_path):
    X, y = make_data()
    options = {"max_iter": 30, "n_iter_no_change": 4, "learning_rate": 0.02}
    make = partial(MODELS["softmax"], **options)
    X_val, y_val = make_data(seed=1)
    of_fit = {} if held_out else {"X_val": X_val, "y_val": y_val}
    expected = make().fit(X, y, **of_fit)
    assert 4 < expected.n_iter_ < 30
    # The checkpoint lies within the epochs without a new best.
    found = interrupted(make, (X, y), tmp_path, expected.n_iter_ - 2, **of_fit)
    assert_learned_the_same([found], [expected])


RANDOM_STATES = {
    "Generator": lambda: np.random.default_rng(5),
    "MT19937": lambda: np.random.Generator(np.random.MT19937(5)),
    "RandomState": lambda: np.random.RandomState(5),
}


@pytest.mark.parametrize("name", RANDOM_STATES)
def test_goes_on_with_a_generator_of_the_callers(name, tmp_path):
    data = make_data()

    def make(random_state=None):
        random_state = random_state or RANDOM_STATES[name]()
        return MODELS["net"](max_iter=EPOCHS, random_state=random_state)

    given, expected = RANDOM_STATES[name](), RANDOM_STATES[name]()
    with pytest.raises(StoppedError):
        make().fit(*data, checkpoint=tmp_path, callback=after(2))
    found = make(given).fit(*data, checkpoint=tmp_path, resume=True)
    assert_learned_the_same([found], [make(expected).fit(*data)])
    assert given.random(3).tolist() == expected.random(3).tolist()
    used = make(given)  # it is not where it was at the start
    with pytest.raises(ValueError, match=f"random_state is '{type(given).__name__}"):
        used.fit(*data, checkpoint=tmp_path, resume=True)


def test_a_training_without_a_seed_goes_on_as_it_began(tmp_path):
    data = make_data()
    make = partial(MODELS["net"], max_iter=EPOCHS, random_state=None)
    with pytest.raises(StoppedError):
        make().fit(*data, checkpoint=tmp_path / "one", callback=after(2))
    other = tmp_path / "other"
    other.mkdir()
    for path in (tmp_path / "one").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    found = [
        make().fit(*data, checkpoint=folder, resume=True) for folder in (tmp_path / "one", other)
    ]
    assert_learned_the_same(found[:1], found[1:])


def names(folder):
    return sorted(int(path.stem.partition("-")[2]) for path in folder.iterdir())


def test_a_checkpoint_every_so_many_epochs_and_at_the_end(tmp_path):
    data, make = make_data(), partial(MODELS["softmax"], max_iter=EPOCHS)
    seen = []

    def callback(epoch, history):
        seen.append((epoch, names(tmp_path)))

    found = make().fit(
        *data, checkpoint=tmp_path, checkpoint_every=3, resume=True, callback=callback
    )
    # The epoch's own checkpoint follows the callback. The first tells whether there can be any.
    assert seen == [
        *((epoch, [0]) for epoch in (1, 2, 3)),
        *((epoch, [0, 3]) for epoch in (4, 5, 6)),
        (7, [3, 6]),
    ]
    assert names(tmp_path) == [6, 7]
    assert_learned_the_same([found], [make().fit(*data)])


def test_checkpoints_may_come_more_seldom_after_a_break(tmp_path):
    data, make = make_data(), partial(MODELS["softmax"], max_iter=EPOCHS)
    with pytest.raises(StoppedError):
        make().fit(*data, checkpoint=tmp_path, callback=after(3))
    found = make().fit(*data, checkpoint=tmp_path, checkpoint_every=5, resume=True)
    assert_learned_the_same([found], [make().fit(*data)])


@pytest.mark.parametrize("ends", ["at max_iter", "early", "by the callback", "by divergence"])
def test_a_training_that_had_ended_gives_its_model(ends, tmp_path):
    data = make_data()
    early = {"n_iter_no_change": 2, "learning_rate": 0.02, "max_iter": 30}
    make = partial(MODELS["softmax"], **{"max_iter": EPOCHS} | (early if ends == "early" else {}))
    if ends == "by divergence":
        make = partial(make, learning_rate=1e30, schedule="exponential")
        messages = []
        for resume in (False, True):
            with pytest.raises(DivergedError) as caught:
                make().fit(*data, checkpoint=tmp_path, resume=resume)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        return
    stop = (lambda epoch, _: epoch == 3) if ends == "by the callback" else None
    expected = make().fit(*data, checkpoint=tmp_path, callback=stop)
    n_epochs = []
    found = make().fit(
        *data, checkpoint=tmp_path, resume=True, callback=lambda epoch, _: n_epochs.append(epoch)
    )
    assert not n_epochs
    assert_learned_the_same([found], [expected])
    assert (ends == "at max_iter") == (found.n_iter_ == EPOCHS)


def test_a_model_gone_on_with_can_be_trained_on(tmp_path):
    X, y = make_data()
    make = partial(MODELS["net"], max_iter=EPOCHS)
    found, expected = interrupted(make, (X, y), tmp_path, 4), make().fit(X, y)
    for model in (found, expected):
        model.partial_fit(X, y)
    assert_learned_the_same([found], [expected])


def test_an_ensemble_goes_on(tmp_path, monkeypatch):
    X, y = make_data()
    settings = [{"random_state": seed, "learning_rate": r} for seed in (0, 1) for r in (1e-3, 0.1)]
    expected = FleetEnsemble(MODELS["net"](max_iter=3), settings).fit(X, y)
    real, calls = TwoLayerNetClassifier._run_sgd, []

    def second_is_interrupted(self, *args, keep=None, **options):
        def keep_then_stop(*state):
            keep(*state)
            if len(calls) == 2:
                raise StoppedError

        calls.append(self)
        return real(self, *args, keep=keep_then_stop, **options)

    found = FleetEnsemble(MODELS["net"](max_iter=3), settings)
    monkeypatch.setattr(TwoLayerNetClassifier, "_run_sgd", second_is_interrupted)
    with pytest.raises(StoppedError):
        found.fit(X, y, checkpoint=tmp_path)
    monkeypatch.undo()
    assert [*map(names, sorted(tmp_path.iterdir()))] == [[2, 3], [0, 1]]
    found.fit(X, y, checkpoint=tmp_path, resume=True)
    assert_learned_the_same(found.estimators_, expected.estimators_)


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("damage", [*DAMAGES][:2])
def test_an_unreadable_checkpoint_falls_back_to_the_one_before(damage, tmp_path):
    data, make = make_data(), partial(MODELS["net"], max_iter=EPOCHS)
    with pytest.raises(StoppedError):
        make().fit(*data, checkpoint=tmp_path, callback=after(5))
    assert names(tmp_path) == [3, 4]
    last = tmp_path / "checkpoint-00000004.safetensors"
    last.write_bytes(DAMAGES[damage](last.read_bytes(), np.random.default_rng(0)))
    with pytest.warns(UserWarning, match="00000004.* going on from checkpoint-00000003"):
        found = make().fit(*data, checkpoint=tmp_path, resume=True)
    assert_learned_the_same([found], [make().fit(*data)])


def unusual(X, rng):
    return X


CHANGES = {
    "reg": ({"reg": 0.5}, "reg is 0.0001 there and 0.5 here"),
    "epochs": ({"max_iter": EPOCHS + 1}, f"max_iter is {EPOCHS} there and {EPOCHS + 1} here"),
    "seed": ({"random_state": 1}, "random_state is 0 there and 1 here"),
    "augment": ({"augment": unusual}, "augment is .*horizontal_flip.* there and .*unusual' here"),
    "partial": (
        {"augment": partial(horizontal_flip, image_shape=(48, 1, 1))},
        r"augment is .*4, 4\]}\] there and .*1, 1\]}\] here",
    ),
    "numpy": ({"dropout": np.float64(0.2)}, "dropout is 0.3 there and 0.2 here"),
}


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_refused_by_name(change, tmp_path):
    data, (own, words) = make_data(), CHANGES[change]
    MODELS["net"](max_iter=EPOCHS).fit(*data, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=words):
        MODELS["net"](**{"max_iter": EPOCHS} | own).fit(*data, checkpoint=tmp_path, resume=True)


def test_another_class_or_another_fleet_is_refused(tmp_path):
    X, y = make_data()
    MODELS["svm"](max_iter=3).fit(X, y, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="class is 'LinearSVMClassifier' there"):
        MODELS["softmax"](max_iter=3).fit(X, y, checkpoint=tmp_path, resume=True)
    errors = fit_together(
        [MODELS["svm"](max_iter=3, reg=reg) for reg in (0.1, 0.2)],
        *(X, y), checkpoint=tmp_path, resume=True,
    )  # fmt: skip
    assert {type(error) for error in errors} == {ValueError}
    assert "models is 1 there and 2 here" in str(errors[0])
    assert r"reg is 0.03 there and [0.1, 0.2] here" in str(errors[0])


def test_other_data_are_refused(tmp_path):
    X, y = make_data()
    X_val, y_val = make_data(seed=1)
    of_val = {"X_val": X_val, "y_val": y_val}
    MODELS["net"](max_iter=2).fit(X, y, **of_val, checkpoint=tmp_path)
    other = X.copy()
    other[-1, -1] += 1
    weights = np.ones(len(y))
    for name, data, val in (
        ("X", (other, y), of_val),
        ("y", (X, y[::-1]), of_val),
        ("y", (X, y * 2), of_val),
        ("sample_weight", (X, y, weights), of_val),
        ("validation", (X, y), {"X_val": other, "y_val": y_val}),
        ("validation", (X, y), {}),
    ):
        with pytest.raises(ValueError, match=f"fingerprint of {name} is"):
            MODELS["net"](max_iter=2).fit(*data, **val, checkpoint=tmp_path, resume=True)


def test_what_cannot_go_on_says_so_before_it_trains(tmp_path):
    X, y = make_data()
    never = {"callback": after(1)}
    with pytest.raises(ValueError, match=r"resume=True needs checkpoint="):
        MODELS["net"]().fit(X, y, resume=True, **never)
    for every in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match=f"checkpoint_every must be an integer.* {every!r}"):
            MODELS["net"]().fit(X, y, checkpoint=tmp_path, checkpoint_every=every, **never)
    with pytest.raises(ValueError, match=r"solver='sgd' only.*L-BFGS"):
        SoftmaxClassifier(solver="lbfgs").fit(X, y, checkpoint=tmp_path, **never)
    assert not [*tmp_path.iterdir()]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match="file"):
        MODELS["net"]().fit(X, y, checkpoint=file, **never)
    MODELS["net"](max_iter=1).fit(X, y, checkpoint=tmp_path / "used")
    with pytest.raises(FileExistsError, match="resume=True"):
        MODELS["net"](max_iter=1).fit(X, y, checkpoint=tmp_path / "used", **never)


def test_a_checkpoint_that_fits_nothing_is_refused(tmp_path, monkeypatch):
    data, make = make_data(), partial(MODELS["net"], max_iter=3)
    make().fit(*data, checkpoint=tmp_path)
    real = resuming_read()
    for spoil in (
        lambda state: state.update(epoch=99),
        lambda state: state.pop("rng"),
        lambda state: state["members"].pop(),
        lambda state: state["members"][0]["params"].update(W1=np.zeros((2, 2))),
        lambda state: state["members"][0]["params"].pop("b2"),
        lambda state: state["members"][0]["history"].loss.pop(),
        lambda state: state["members"][0].update(velocity=[1.0]),
    ):

        def read(path, spoil=spoil):
            state, settings = real(path)
            spoil(state)
            return state, settings

        monkeypatch.setattr("gpuclf.saving.checkpoints._read", read)
        with pytest.raises(ValueError, match=r"cannot be gone on from .*: train anew"):
            make().fit(*data, checkpoint=tmp_path, resume=True)


def resuming_read():
    from gpuclf.saving import checkpoints

    return checkpoints._read


# ----------------------------------------------------------------------------------- kill -9


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is for POSIX")
@pytest.mark.parametrize(
    "kind",
    [
        "net",
        *(
            pytest.param(other, marks=pytest.mark.nightly)
            for other in ("fleet-net", "fleet-softmax", "saving")
        ),
    ],
)
def test_processes_killed_at_any_moment_end_with_the_same_bits(kind):
    script = Path(__file__).with_name("random_kills.py")
    done = subprocess.run(
        [sys.executable, script, "--kind", kind, "--kills", "5"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout
