"""A training that a process can be killed in: ``python resumed.py KIND FOLDER OUTPUT``.

It writes a digest of all that was learned to OUTPUT.
"""

import hashlib
import sys
from functools import partial
from pathlib import Path

import numpy as np

from gpuclf import LinearSVMClassifier, SoftmaxClassifier, TwoLayerNetClassifier
from gpuclf.augment import horizontal_flip
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.training import DivergedError

N, D, C = 120, 48, 3  # images of 4 x 4 in three colours


def make_data(dtype=np.float32, seed=0, n=N):
    """Return samples of classes that overlap, so that accuracies rise and fall."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    X = 128 + 40 * (rng.standard_normal((n, D)) + 0.7 * np.eye(C, D)[y])
    return np.clip(X, 0, 255).astype(dtype), y


flip = partial(horizontal_flip, image_shape=(3, 4, 4))
# What each draws from the generator: the order of samples, and flips, or dropout, or both.
COMMON = {"batch_size": 25, "random_state": 0}
RATES = (1e-4, 1e-3, 1e-2, 0.1, 1e30)  # the last diverges
NET = {"hidden_size": 6, "dropout": 0.3, "augment": flip}
MODELS = {
    "softmax": lambda **own: SoftmaxClassifier(**COMMON | {"augment": flip} | own),
    "svm": lambda **own: LinearSVMClassifier(**COMMON | {"schedule": "exponential"} | own),
    "net": lambda **own: TwoLayerNetClassifier(**COMMON | NET | own),
}


def fleet(kind, **own):
    """Return models of which some stop early and one diverges."""
    early = {"n_iter_no_change": 3, "validation_fraction": 0.3, "schedule": "exponential"}
    return [MODELS[kind](**early | own | {"learning_rate": rate}) for rate in RATES]


def learned(model):
    """Return all that a fit leaves, on the host."""
    from gpuclf import to_host

    if not hasattr(model, "params_"):
        return {}
    found = {f"params_.{k}": np.asarray(to_host(v)) for k, v in model.params_.items()}
    found |= {f"velocity.{k}": np.asarray(to_host(v)) for k, v in model._velocity.items()}
    found |= {name: np.array(v) for name, v in vars(model.history_).items()}
    found |= {"n_iter_": np.array(model.n_iter_), "classes_": model.classes_}
    found |= {"mean_": model.mean_, "scale_": model.scale_}
    return found | {"generator": np.array(repr(model._rng.bit_generator.state))}


def digest(models, errors):
    """Return a digest of what models have learned, to the bit."""
    found = hashlib.sha256(repr([str(error) for error in errors]).encode())
    for model in models:
        for name, value in learned(model).items():
            found.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()


def main(kind, folder, output):
    """Train one model, or with "fleet-" before its name some together; go on where it was left."""
    X, y = make_data()
    options = {"checkpoint": folder, "resume": True}
    if folder == "none":
        options = {}
    name = kind.removeprefix("fleet-")
    if name != kind:
        models = fleet(name, max_iter=40, n_iter_no_change=12)
        errors = fit_together(models, X, y, **options)
        assert sum(isinstance(error, DivergedError) for error in errors) == 1
        assert sum(error is None for error in errors) == len(models) - 1
    else:
        model = MODELS[name](max_iter=40)
        models, errors = [model.fit(X, y, **options)], []
    Path(output).write_text(digest(models, errors), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
