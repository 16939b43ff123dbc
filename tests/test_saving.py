import copy
import functools
import pickle
import subprocess
import sys
import textwrap

import joblib
import numpy as np
import pytest
from conftest import LIBRARIES
from models_to_save import KINDS, LABELS, D, assert_same, fitted, make_data, round_trip
from safetensors.numpy import load as load_tensors
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import gpuclf
from gpuclf.augment import horizontal_flip, in_turn, random_shift
from gpuclf.estimators.keeping import ON_DEVICE
from gpuclf.saving import values

every_kind = pytest.mark.parametrize("kind", KINDS)


# ------------------------------------------------------------------------------ round trips


@pytest.mark.essential_cases(6)
@every_kind
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_a_loaded_classifier_is_the_one_that_was_saved(tmp_path, kind, labels, dtype):
    model = fitted(kind, labels=LABELS[labels], dtype=dtype)
    again = round_trip(model, tmp_path)
    assert_same(again, model)  # every attribute: one that is added later too
    X, _ = make_data(labels=LABELS[labels], dtype=dtype, seed=1)
    for method in ("predict", "predict_proba", "decision_function", "kneighbors"):
        if hasattr(model, method):
            assert_same(getattr(again, method)(X), getattr(model, method)(X), method)
    assert repr(again) == repr(model)
    assert_same(clone(again).get_params(deep=False), clone(model).get_params(deep=False))


@pytest.mark.parametrize("kind", ["softmax", "svm", "two-layer"])
def test_training_goes_on_after_loading_as_without(tmp_path, kind):
    X, y = make_data()
    model = fitted(kind)
    again = round_trip(model, tmp_path)
    assert_same(again.partial_fit(X, y), model.partial_fit(X, y))


def test_columns_of_a_frame_are_kept(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = make_data(labels=LABELS["str"])
    frame = pandas.DataFrame(X, columns=[f"pixel {n}" for n in range(D)])
    for kind in KINDS:
        model = KINDS[kind]().fit(frame, pandas.Series(y))
        again = round_trip(model, tmp_path)
        assert_same(again, model)
        np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
        if hasattr(model, "feature_names_in_"):
            with pytest.raises(ValueError, match="feature names"):
                again.predict(frame[frame.columns[::-1]])
    assert again.classes_.tolist() == sorted(LABELS["str"].tolist())


def test_the_order_in_memory_is_kept(tmp_path):
    X, y = make_data()
    model = gpuclf.KNeighborsClassifier().fit(np.asfortranarray(X), y)
    again = round_trip(model, tmp_path)
    assert again._fit_X.flags.f_contiguous
    assert_same(again.kneighbors(X), model.kneighbors(X))
    model = gpuclf.KNeighborsClassifier().fit(np.repeat(X, 2, axis=1)[::-1, ::2], y[::-1])
    again = round_trip(model, tmp_path)
    np.testing.assert_array_equal(again._fit_X, model._fit_X)


def test_samples_in_another_byte_order_or_mapped_from_a_file(tmp_path):
    X, y = make_data()
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", dtype=np.float64, mode="r", shape=X.shape)
    again = round_trip(gpuclf.KNeighborsClassifier().fit(mapped, y), tmp_path)
    assert type(again._fit_X) is np.ndarray
    again = round_trip(gpuclf.KNeighborsClassifier().fit(X, y.astype(">i8")), tmp_path)
    np.testing.assert_array_equal(again.classes_, np.sort(LABELS["int64"]))


def test_neighbors_keep_bytes_as_bytes(tmp_path):
    X, y = make_data(dtype=np.uint8, n=3000)
    gpuclf.KNeighborsClassifier().fit(X, y).save(tmp_path / "model")
    labels = 8 * len(y)
    assert (tmp_path / "model").stat().st_size < X.nbytes + labels + 2000


def test_of_a_search_the_best_is_saved(tmp_path):
    X, y = make_data()
    search = gpuclf.FleetSearchCV(KINDS["svm"](), {"reg": [0.1, 0.01]}, cv=2)
    with pytest.raises(NotFittedError):
        search.save(tmp_path / "model")
    again = round_trip(search.fit(X, y), tmp_path)
    assert_same(again, search.best_estimator_)
    search.set_params(refit=False).fit(X, y)  # what an earlier fit left is not its best
    with pytest.raises(TypeError, match="refit=True"):
        search.save(tmp_path / "model")


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = fitted("soft-ensemble")
    model.save(tmp_path / "one")
    again = gpuclf.load(tmp_path / "one")
    again.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_other_programs_read_the_arrays(tmp_path):
    model = fitted("two-layer")
    model.save(tmp_path / "model.safetensors")
    arrays = load_tensors((tmp_path / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(arrays["params_.W1"], model.params_["W1"])
    np.testing.assert_array_equal(arrays["history_.loss"], model.loss_history_)


# ------------------------------------------------------- generators, functions, what is left out


@pytest.mark.parametrize("bits", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_go_on_where_they_were(tmp_path, bits):
    X, y = make_data()
    generator = np.random.Generator(getattr(np.random, bits)(3))
    model = gpuclf.TwoLayerNetClassifier(max_iter=2, dropout=0.5, random_state=generator)
    model.fit(X, y)
    again = round_trip(model, tmp_path)
    assert again._rng is again.random_state  # as before
    assert_same(again.fit(X, y), model.fit(X, y))


def test_a_random_state_goes_on_where_it_was(tmp_path):
    X, y = make_data()
    model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=np.random.RandomState(3)).fit(X, y)
    again = round_trip(model, tmp_path)
    assert_same(again.fit(X, y), model.fit(X, y))


class OwnBits(np.random.PCG64):
    pass


def test_a_generator_of_one_s_own_is_named(tmp_path):
    X, y = make_data()
    model = gpuclf.SoftmaxClassifier(random_state=np.random.Generator(OwnBits(3))).fit(X, y)
    with pytest.warns(UserWarning, match=r"random_state=Generator\(OwnBits\).*set_params"):
        model.save(tmp_path / "model")
    again = gpuclf.load(tmp_path / "model")
    assert again.random_state is None
    again.partial_fit(X, y)


def test_the_library_s_augmentations_are_kept(tmp_path):
    X, y = make_data()
    flip = functools.partial(horizontal_flip, image_shape=(1, 3, 4))
    model = gpuclf.SoftmaxClassifier(max_iter=2, augment=flip).fit(X, y)
    again = round_trip(model, tmp_path)
    assert again.augment.func is horizontal_flip
    assert again.augment.keywords == {"image_shape": (1, 3, 4)}
    assert round_trip(again.set_params(augment=horizontal_flip), tmp_path).augment is (
        horizontal_flip
    )
    shift = functools.partial(random_shift, image_shape=(1, 3, 4), pixels=1)
    both = functools.partial(in_turn, steps=(flip, shift))
    again = round_trip(again.set_params(augment=both), tmp_path)
    assert [step.func for step in again.augment.keywords["steps"]] == [flip.func, random_shift]
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    np.testing.assert_array_equal(again.augment(X, rng), both(X, other))


def test_an_augmentation_of_one_s_own_is_named(tmp_path):
    def jitter(batch, rng):
        return batch

    X, y = make_data()
    for augment in (jitter, functools.partial(jitter)):
        model = gpuclf.SoftmaxClassifier(max_iter=2, augment=augment, reg=0.5).fit(X, y)
        with pytest.warns(UserWarning, match=r"augment=.*jitter.* cannot be stored") as caught:
            model.save(tmp_path / "model")
        assert caught[0].filename == __file__
        again = gpuclf.load(tmp_path / "model")
        assert (again.augment, again.reg) == (None, 0.5)
    members = gpuclf.FleetEnsemble(
        gpuclf.SoftmaxClassifier(max_iter=2), [{"augment": jitter}, {"reg": 0.1}]
    ).fit(X, y)
    with pytest.warns(UserWarning, match=r"param_list.0.augment=.*jitter"):
        members.save(tmp_path / "model")
    assert gpuclf.load(tmp_path / "model").param_list == [{"augment": None}, {"reg": 0.1}]


def test_an_attribute_that_no_file_can_hold_is_named(tmp_path):
    model = fitted()
    model.name_, model.complex_ = object, np.zeros(3, dtype=complex)
    model.note_ = {"shape": (3, 32, 32), "mean": float("-inf"), "scale": np.float32(0.1)}
    model.note_ |= {"of": [np.True_, np.str_("a"), np.uint64((1 << 64) - 1)], "number": 1 << 200}
    with pytest.warns(UserWarning, match="(name|complex)_=") as caught:
        again = round_trip(model, tmp_path)
    assert len(caught) == 2
    assert not hasattr(again, "name_")
    assert not hasattr(again, "complex_")
    assert_same(again.note_, model.note_)


def test_names_that_lead_to_the_same_place_stay_apart(tmp_path):
    model = fitted()
    model.note_ = {"a.b": np.zeros(2), "a": {"b": np.ones(2)}}
    assert_same(round_trip(model, tmp_path).note_, model.note_)


def test_labels_that_no_file_can_hold_are_refused(tmp_path, monkeypatch):
    model = fitted("softmax")
    model.classes_ = np.array([b"one", b"three", b"two"])
    with pytest.raises(ValueError, match=r"classes_ must not be of type \|S5"):
        model.save(tmp_path / "model")
    model.classes_ = np.array([(1, 2), (3, 4), (5, 6), 7], dtype=object)[:3]
    with pytest.raises(TypeError, match=r"classes_ holds what a file cannot: .*\(3, 4\)"):
        model.save(tmp_path / "model")
    monkeypatch.setattr(values, "MAX_LABEL_CHARACTERS", 20)
    model.classes_ = np.array(["ant", "long-necked", "pig"])
    with pytest.raises(TypeError, match="classes_ holds what a file cannot"):
        model.save(tmp_path / "model")
    assert not [*tmp_path.iterdir()]


class Mine(gpuclf.SoftmaxClassifier):
    pass


def test_a_class_of_one_s_own_is_sent_to_pickle(tmp_path):
    model = Mine(max_iter=2).fit(*make_data())
    with pytest.raises(TypeError, match=r"Mine is none of gpuclf's classifiers.*use pickle"):
        model.save(tmp_path / "model")
    assert_same(pickle.loads(pickle.dumps(model)), model)
    ensemble = gpuclf.FleetEnsemble(Mine(max_iter=2), [{}, {"reg": 0.1}]).fit(*make_data())
    with pytest.raises(TypeError, match="Mine is none of"):
        ensemble.save(tmp_path / "model")
    ensemble.estimators_ = []
    ensemble.estimator = gpuclf.SoftmaxClassifier()
    with pytest.raises(ValueError, match="estimators_ must be a list"):
        ensemble.save(tmp_path / "model")


@every_kind
def test_before_fit_there_is_nothing_to_save(tmp_path, kind):
    with pytest.raises(NotFittedError):
        KINDS[kind]().save(tmp_path / "model")
    assert not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- pickles, copies and devices


@pytest.mark.parametrize("kind", ["softmax", "svm", "two-layer"])
def test_what_is_pickled_or_saved_in_a_callback_goes_on(tmp_path, kind):
    X, y = make_data()
    kept = []

    def keep(epoch, history):
        if epoch == 2:
            model.save(tmp_path / "model")
            kept.extend([pickle.dumps(model), copy.deepcopy(model)])

    model = KINDS[kind]()
    model.fit(X, y, callback=keep)
    copies = [gpuclf.load(tmp_path / "model"), pickle.loads(kept[0]), kept[1]]
    for early in copies:
        assert early.n_iter_ == 2
        assert early.loss_history_ == model.loss_history_[: len(early.loss_history_)]
        assert 0 < len(early.loss_history_) < len(model.loss_history_)
        early.partial_fit(X, y)
        assert early.n_iter_ == 3
        assert early.score(X, y) > 0.5


def attributes_elsewhere(value, name=""):
    """Yield the names of all arrays that are not NumPy's."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from attributes_elsewhere(item, name or key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from attributes_elsewhere(item, name)
    elif hasattr(value, "map_arrays"):
        yield from attributes_elsewhere(vars(value), name)
    elif hasattr(value, "dtype") and not isinstance(value, np.ndarray | np.generic):
        yield name


@pytest.mark.essential_cases(6)
@every_kind
def test_pickles_and_files_hold_host_arrays(tmp_path, lib, kind):
    X, y = make_data()
    X_test, _ = make_data(seed=1)
    model = KINDS[kind]().fit(lib.asarray(X), lib.asarray(y))
    if not lib.name.startswith("numpy"):
        # An attribute that lives on the device and is not among these would stay there.
        assert set(ON_DEVICE) >= {*attributes_elsewhere(vars(model))} != set()
    joblib.dump(model, tmp_path / "joblib")
    pickled, dumped = pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "joblib")
    loaded = round_trip(model, tmp_path)
    expected = gpuclf.to_host(model)
    for again in (pickled, dumped, loaded, expected):
        assert not [*attributes_elsewhere(vars(again))]
        assert_same(again, expected)
    wanted = lib.to_numpy(model.predict(lib.asarray(X_test)))
    np.testing.assert_array_equal(loaded.predict(X_test), wanted)
    moved = gpuclf.to_device(loaded, like=lib.asarray(X))
    assert {*attributes_elsewhere(vars(moved))} == {*attributes_elsewhere(vars(model))}
    np.testing.assert_array_equal(lib.to_numpy(moved.predict(lib.asarray(X_test))), wanted)


@pytest.mark.essential_cases(6)
@every_kind
def test_copies_stay_where_they_are(lib, kind):
    X, y = lib.asarray(make_data()[0]), lib.asarray(make_data()[1])
    model = KINDS[kind]().fit(X, y)
    for copied in (copy.copy(model), copy.deepcopy(model)):
        assert vars(copied).keys() == vars(model).keys()
        assert [*attributes_elsewhere(vars(copied))] == [*attributes_elsewhere(vars(model))]
        found, wanted = copied.predict(X), model.predict(X)
        assert type(found) is type(wanted)
        np.testing.assert_array_equal(lib.to_numpy(found), lib.to_numpy(wanted))
    assert copied.classes_ is not model.classes_


def test_a_moved_copy_draws_from_a_generator_of_its_own():
    X, y = make_data()
    model = fitted()
    before = model._rng.bit_generator.state
    gpuclf.to_device(model, "numpy").partial_fit(X, y)
    assert model._rng.bit_generator.state == before


def run_without(library, script, *args):
    """Run a script where a library cannot be imported."""
    hidden = f"""
import sys
class Hidden:
    def find_spec(name, path, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
"""
    run = subprocess.run(
        [sys.executable, "-c", hidden + textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize(
    ("library", "module"),
    [
        ("array-api-strict", "array_api_strict"),
        pytest.param("torch", "torch", marks=pytest.mark.slow),
    ],
)
def test_what_was_trained_elsewhere_loads_where_that_library_is_missing(tmp_path, library, module):
    lib = LIBRARIES[library]()
    X, y = make_data()
    models = {
        kind: KINDS[kind]().fit(lib.asarray(X), lib.asarray(y))
        for kind in ("two-layer", "neighbors", "soft-ensemble")
    }
    (tmp_path / "models").write_bytes(pickle.dumps(models))
    models["two-layer"].save(tmp_path / "saved")
    np.save(tmp_path / "X.npy", X)
    script = """
        import pickle, numpy as np, gpuclf
        X = np.load(sys.argv[2])
        with open(sys.argv[1], "rb") as file:
            models = pickle.load(file)
        for model in (*models.values(), gpuclf.load(sys.argv[3])):
            print(*model.predict(X))
    """
    found = run_without(module, script, tmp_path / "models", tmp_path / "X.npy", tmp_path / "saved")
    wanted = [
        str(label)
        for kind in (*models, "two-layer")
        for label in lib.to_numpy(models[kind].predict(lib.asarray(X)))
    ]
    assert found == wanted


# ------------------------------------------------------------------------------- whole or not


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "model"
    model = fitted()
    model.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            model.set_params(reg=0.5).save(path)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]
    model.save(path)
    assert gpuclf.load(path).reg == 0.5


def test_importing_gpuclf_does_not_import_safetensors():
    script = "import gpuclf.saving.checkpoints; print('safetensors' in sys.modules)"
    assert run_without("cupy", script) == ["False"]
