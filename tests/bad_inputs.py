"""Bad inputs, what a user sees, and what then works: one table, for the tests and docs/errors.md.

    python tests/bad_inputs.py           writes docs/errors.md

Messages of other libraries, which change with their versions, have no place here.
"""

import contextlib
import io
import shlex
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import scipy.sparse
import sklearn.multioutput
import sklearn.utils.class_weight

import gpuclf
from gpuclf.bench.report.markdown import markdown_table
from gpuclf.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


class Case(NamedTuple):
    """A call, words of what it says, and what it advises, as code that works."""

    call: str
    words: str
    remedy: str = ""
    error: type[Exception] = ValueError


def kind(call, words, remedy=""):
    """Return a case of a wrong type."""
    return Case(call, words, remedy, TypeError)


def loss(X="X", y="y", W="W", more=""):
    """Return a call of the loss."""
    return f"softmax_loss_vectorized({W}, {X}, {y}, 0.1{more})"


def fit(X="X", y="y", parameters="", more="", model="SoftmaxClassifier"):
    """Return a call of fit."""
    return f"{model}({parameters}).fit({X}, {y}{more})"


def net(parameters):
    return fit(parameters=parameters, model="TwoLayerNetClassifier")


def knn(parameters, X="X"):
    return fit(X, parameters=parameters, model="KNeighborsClassifier")


def search(parameters="", y="y"):
    return f"FleetSearchCV(SoftmaxClassifier(), {{'reg': [0.1, 1]}}{parameters}).fit(X, {y})"


def ensemble(members, voting):
    return f"FleetEnsemble(LinearSVMClassifier(), {members}, voting={voting!r}).fit(X, y)"


CASES = {
    "Samples": [
        kind(loss("X.tolist()"), "got list", loss("numpy.asarray(X.tolist())")),
        Case(loss("X[0]"), "got (6,)", loss("X[0].reshape(1, -1)", "y[:1]")),
        Case(loss("X[:0]", "y[:0]"), "X is empty: shape (0, 6)"),
        Case(loss("images"), "flatten images, the planes first",
             loss("images.transpose(0, 3, 1, 2).reshape(len(images), -1)",
                  W="numpy.ones((192, 3))")),
        kind(loss("X.astype('int64')"), "got int64", loss("X.astype('float32')")),
        kind(loss("X.astype('>f8')"), "byte order", loss("X.astype('>f8').astype('float64')")),
        Case(loss("holed"), "the first at X[4, 1]", loss("numpy.nan_to_num(holed)")),
        Case(loss("X * 1e200", W="W * 1e200"), "something overflows",
             loss("Standardized.fit(X * 1e100)"), FloatingPointError),
        kind(fit("numpy.matrix(X)"), "a numpy.matrix", fit("numpy.asarray(numpy.matrix(X))")),
        kind(fit("scipy.sparse.csr_array(X)"), "X is sparse",
             fit("scipy.sparse.csr_array(X).toarray()")),
        kind(fit("numpy.ma.masked_greater(X, 2)"), "a masked array",
             fit("numpy.ma.filled(numpy.ma.masked_greater(X, 2), 0)")),
        Case("fitted.predict(X[:, :4])", "is expecting 6 features", "fitted.predict(X)"),
        kind(knn("", "Standardized.fit(X)"), "write the samples out",
             knn("", "Standardized.fit(X).to_array()")),
        Case("pairwise_distances(X, X[:, :2])", "(30, 6) and (30, 2)"),
        Case("pairwise_distances(X, X, metric='l3')", "got 'l3'",
             "pairwise_distances(X, X, metric='manhattan')"),
        Case(knn("metric='cosine'", "X * (y > 0)[:, None]"), "X[0] is a zero vector",
             knn("metric='euclidean'", "X * (y > 0)[:, None]")),
        Case("extract_features(images)", "flatten images, the planes first",
             "extract_features(images.transpose(0, 3, 1, 2).reshape(len(images), -1), (3, 8, 8))"),
        Case("extract_features(pixels)", "give another size as image_shape",
             "extract_features(pixels, image_shape=(3, 8, 8))"),
    ],
    "Labels and weights": [
        Case(loss(y="y + 1"), "got y[2] = 3 and 9 more",
             loss(y="y + 1", W="numpy.ones((6, 4))")),
        kind(loss(y="y * 1.0"), "got float64", loss(y="(y * 1.0).astype(int)")),
        kind(loss(y="y.astype(str)"), "numpy.unique(y, return_inverse=True)",
             loss(y="numpy.unique(y.astype(str), return_inverse=True)[1]")),
        Case(loss(y="y[:-1]"), "got (29,)", loss("X[:-1]", "y[:-1]")),
        Case("two_layer_loss(params, X, y, 0.1, -1.0 * y)", "finite, at least 0, and not 0",
             "two_layer_loss(params, X, y, 0.1, 1.0 * y)"),
        Case("two_layer_loss(params, X, y, 0.1, numpy.ones((30, 1)))", "got (30, 1)",
             "two_layer_loss(params, X, y, 0.1, numpy.ones((30, 1)).ravel())"),
        Case(fit(y="numpy.eye(3)[y]"), "several outputs for a sample",
             "sklearn.multioutput.MultiOutputClassifier(SoftmaxClassifier())"
             ".fit(X, numpy.eye(3)[y])"),
        Case(fit(parameters="class_weight={7: 2.0}"), "the label 7",
             fit(parameters="class_weight={2: 2.0}")),
        Case(fit(parameters="class_weight='equal'"), 'or "balanced", or None, got \'equal\'',
             fit(parameters="class_weight='balanced'")),
        kind(fit(y="numpy.ma.masked_equal(y, 2)"), "leave out the rows that it hides",
             fit("X[~numpy.ma.getmaskarray(numpy.ma.masked_equal(y, 2))]",
                 "numpy.ma.masked_equal(y, 2).compressed()")),
        Case("fitted.score(X, y, 1e308 * (y + 1.0))", "which is inf",
             "fitted.score(X, y, y + 1.0)"),
        Case("SoftmaxClassifier().partial_fit(X, y, classes=[0, 1, 2, numpy.nan])",
             "none of them NaN", "SoftmaxClassifier().partial_fit(X, y, classes=numpy.unique(y))"),
        Case("SoftmaxClassifier().partial_fit(X, y)", "first call of partial_fit needs classes=",
             "SoftmaxClassifier().partial_fit(X, y, classes=numpy.unique(y))"),
        Case("SoftmaxClassifier(class_weight='balanced').partial_fit(X, y, classes=[0, 1, 2])",
             "partial_fit sees a part: count once",
             "SoftmaxClassifier().set_params(class_weight=dict(zip([0, 1, 2], sklearn.utils."
             "class_weight.compute_class_weight('balanced', classes=numpy.arange(3), y=y))))"
             ".partial_fit(X, y, classes=[0, 1, 2])"),
        Case("SoftmaxClassifier().partial_fit(X, y, classes=[0, 1])", "y has the label 2",
             "SoftmaxClassifier().partial_fit(X, y, classes=[0, 1, 2])"),
        Case("knn_vote(X, y, k=5)", "one label for each column",
             "knn_vote(pairwise_distances(X, X), y, k=5)"),
        Case("knn_vote(pairwise_distances(X, X), y, k=31)", "from 1 to the 30 training samples",
             "knn_vote(pairwise_distances(X, X), y, k=30)"),
    ],
    "Parameters of a loss": [
        Case(loss(W="W.T"), "it looks transposed: pass W.T", loss(W="W.T.T")),
        Case(loss(W="W[1:]"), "W must have shape (6, any)"),
        kind(loss(W="W.astype(int)"), "W must be float32 or float64, got int64",
             loss(W="W.astype(int).astype('float32')")),
        Case(loss(W="W * numpy.inf"), "W has 18 NaN or infinite values",
             loss(W="numpy.nan_to_num(W * numpy.inf) / 1e308")),
        Case("softmax_loss_vectorized(W, X, y, -0.1)", "reg must be a finite number, at least 0"),
        Case(loss(more=", precision='half'"), "got 'half'", loss(more=", precision='tf32'")),
        kind("two_layer_loss([W], X, y, 0.1)", "a dict of W1, b1, W2 and b2, got list",
             "two_layer_loss(params, X, y, 0.1)"),
        Case("two_layer_loss({'W1': W}, X, y, 0.1)", "missing: b1, W2, b2"),
        Case("two_layer_loss({**params, 'b2': params['b1']}, X, y, 0.1)",
             "b2 must have shape (3,)"),
    ],
    "Hyper-parameters": [
        Case(fit(parameters="learning_rate=0"), "a finite number above 0, or \"auto\", got 0",
             fit(parameters="learning_rate='auto'")),
        Case(fit(parameters="max_iter=1.5"), "an integer, at least 1, got 1.5"),
        Case(fit(parameters="momentum=1"), "at least 0 and below 1, got 1"),
        Case(fit(parameters="schedule='cosine'"), "'exponential' or 'one_cycle'",
             fit(parameters="schedule='one_cycle'")),
        Case(fit(parameters="solver='adam'"), "'sgd' or 'lbfgs', got 'adam'",
             fit(parameters="solver='lbfgs'")),
        Case(fit(parameters="batch_size=0"), "an integer, at least 1, or \"auto\"",
             fit(parameters="batch_size='auto'")),
        Case(net("hidden_size=0"), "hidden_size must be an integer, at least 1, got 0"),
        Case(net("dropout=1"), "dropout must be in [0, 1), got 1"),
        Case(net("augment=lambda batch, rng: batch[:5]"), "a batch of the shape that it got"),
        Case(fit(parameters="learning_rate=1e30, standardize=False"), "use a smaller learning_rate",
             fit(parameters="learning_rate=1e-3"), FloatingPointError),
        Case(fit(more=", X_val=X"), "pass both, or neither", fit(more=", X_val=X, y_val=y")),
        Case(fit(more=", X_val=X, y_val=y.astype(str)"), "y_val has no label of y",
             fit(more=", X_val=X, y_val=y.astype(str).astype(int)")),
        Case(fit(parameters="n_iter_no_change=2, validation_fraction=0.01"),
             "change it, or pass X_val and y_val",
             fit(parameters="n_iter_no_change=2, validation_fraction=0.1")),
        Case(fit(more=", resume=True"), "needs checkpoint=",
             fit(more=", resume=True, checkpoint='a'")),
        Case(fit(parameters="solver='lbfgs'", more=", checkpoint='b'"), "of solver='sgd' only",
             fit(parameters="solver='sgd'", more=", checkpoint='b'")),
        Case(knn("n_neighbors=0"), "an integer, at least 1, got 0"),
        Case(f"{knn('n_neighbors=31')}.predict(X)", "(n_samples = 30), got 31",
             f"{knn('n_neighbors=30')}.predict(X)"),
        Case(fit(parameters="random_state='a'"), "a numpy.random.Generator, a RandomState, or None",
             fit(parameters="random_state=0")),
        Case(fit(parameters="augment='flip'"), "a function of a batch, or None, got 'flip'",
             fit(parameters="augment=None")),
        kind(fit(more=", callback=5"), "callback must be a function, got 5"),
        Case(f"{knn('weights=lambda d: d * numpy.nan')}.predict(X)", "returned NaN for neighbors",
             f"{knn('weights=lambda d: d * 0 + 1')}.predict(X)"),
        Case(knn("weights='near'"), "'uniform', 'distance', None or a callable",
             knn("weights='distance'")),
        Case(search(", factor=1"), "factor must be a number above 1, or None", search()),
        Case(search(y="None"), "requires y to be passed"),
        Case(ensemble("{'reg': 0.1}", None), "goes into a list", ensemble("[{'reg': 0.1}]", None)),
        Case(ensemble("[{'reg': 0.1}]", "soft"), "use voting='hard'",
             ensemble("[{'reg': 0.1}]", "hard")),
    ],
    "Images": [
        Case("to_rows(images[0])", "8 grey images of 8 x 3 pixels, or one colour image",
             "to_rows(images[0][None, ...])"),
        Case("to_rows(images[:, :3])", "give layout='NCHW' for the first",
             "to_rows(images[:, :3], layout='NHWC')"),
        Case("to_rows(images, layout='HWC')", "must be one of 'NHWC', 'NCHW', 'NHW', got 'HWC'",
             "to_rows(images, layout='NHWC')"),
        Case("to_rows(images, layout='NHW')", "which is not of layout 'NHW', 3 axes"),
        Case("to_rows(images / 127.5 - 1)", "undo that: (images + 1) / 2",
             "to_rows((images / 127.5 - 1 + 1) / 2)"),
        Case("to_rows(images / 200)", "cut fractions", "to_rows((images / 200).clip(0, 1))"),
        Case("to_rows(images / 2 - 70)", "gpuclf.datasets.rows.as_rows(images)[0]",
             "gpuclf.datasets.rows.as_rows(images / 2 - 70)[0]"),
        Case("to_rows(images.astype('uint16') * 256)", "take the upper eight: images // 256",
             "to_rows(images.astype('uint16') * 256 // 256)"),
        kind("to_rows(images * 1j)", "integers, booleans or floats, got complex128"),
        Case("to_rows([])", "there is no image in the list"),
        kind("to_rows(5)", "got int"),
        Case("to_rows([images, images])", "numpy.concatenate(images)",
             "to_rows(numpy.concatenate([images, images]))"),
        Case("to_rows([images[0], images[0, 1:]])", "pass pictures",
             "to_rows([PIL.Image.fromarray(i) for i in [images[0], images[0, 1:]]], size=32)"),
        Case("to_rows(pixels, size=4)", "are rows already", "to_rows(images, size=4)"),
        Case("to_rows(images, size=0)", "at least 1 pixel each way, got 0"),
        Case("to_rows('missing.png')", "missing.png cannot be read"),
    ],
    "Files": [
        Case("load_samples('missing')", "there is no missing. Known forms of samples",
             "load_samples('named.npz')"),
        Case("load_samples('samples.npz')", "numpy.savez(path, X=X, y=y)",
             "load_samples('named.npz')"),
        Case("load_samples('rows.npy')", "expected rows_labels.npy or rows_y.npy"),
        Case("load_samples('named.npz', test_fraction=1)", "less than 1, such as 0.2",
             "load_samples('named.npz', test_fraction=0.2)"),
        Case("load_image_folder('folder', size=None)", "such as (32, 32)"),
        Case("load_image_folder('missing')", "Give one that has a folder a class"),
        Case("load_image_folder('folder')", "Put the images into a folder a class"),
    ],
    "Commands": [
        Case("gpuclf train softmax --hidden-size 3", "--hidden-size does not apply to softmax"),
        Case("gpuclf train svm --dropout 0.1", "--dropout does not apply to svm"),
        Case("gpuclf train knn --no-flip", "--flip does not apply to knn"),
        Case("gpuclf train svm --flip --data named.npz", "are rows of numbers: leave it out"),
        Case("gpuclf train softmax --shift 2 --solver lbfgs", "leave it out with lbfgs"),
        Case("gpuclf train svm --solver sgd", "--solver does not apply to svm"),
        Case("gpuclf train two-layer --dropout 1", "dropout must be in [0, 1)"),
        Case("gpuclf train knn --epochs 2", "--epochs does not apply to knn"),
        Case("gpuclf train knn --learning-rate 2", "--learning-rate does not apply to knn"),
        Case("gpuclf train softmax --metric l1", "--metric does not apply to softmax"),
        Case("gpuclf train svm --learning-rate 0", "a finite number above 0"),
        Case("gpuclf train softmax --reg -1", "at least 0, got -1"),
        Case("gpuclf train softmax --data nowhere", "there is no nowhere"),
        Case("gpuclf train softmax --data named.npz --data-dir .",
             "--data-dir is the folder of CIFAR-10"),
        Case("gpuclf train softmax --data named.npz --test-data named.npz --test-fraction 0.1",
             "not both"),
        Case("gpuclf train softmax --resume", "--resume needs --checkpoint"),
        Case("gpuclf train knn --checkpoint a", "knn, which has no epochs"),
        Case("gpuclf train softmax --json a.out --log a.out", "the same file, a.out: name two"),
        Case("gpuclf train softmax --image-size 8", "--image-size is for own samples"),
        Case("gpuclf search svm --solver lbfgs", "--solver does not apply to svm"),
        Case("gpuclf search softmax --solver lbfgs --learning-rate 1 2",
             "does not apply to --solver lbfgs"),
        Case("gpuclf search knn --epochs 3", "--epochs does not apply to knn"),
        Case("gpuclf search knn --rounds 2", "--rounds does not apply to knn"),
        Case("gpuclf search knn --candidates 2", "--candidates does not apply to knn"),
        Case("gpuclf search svm --neighbors 3", "--neighbors does not apply to svm"),
        Case("gpuclf search knn --samples 10 --neighbors 11", "above the 10 of --samples"),
    ],
}  # fmt: skip


@cache
def _names():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 6)), np.arange(30) % 3
    shapes = {"W1": (6, 5), "b1": (5,), "W2": (5, 3), "b2": (3,)}
    images = rng.integers(256, size=(30, 8, 8, 3), dtype=np.uint8)
    holed = X.copy()
    holed[4, 1] = np.nan
    public = {name: getattr(gpuclf, name) for name in gpuclf.__all__}
    loaders = ("to_rows", "load_samples", "load_image_folder")
    return {
        **public,
        **{name: getattr(gpuclf.datasets, name) for name in loaders},
        **{"gpuclf": gpuclf, "numpy": np, "scipy": scipy, "sklearn": sklearn, "PIL": PIL},
        **{"X": X, "y": y, "holed": holed},
        **{"images": images, "pixels": images.reshape(30, -1), "W": rng.normal(size=(6, 3))},
        "params": {name: rng.normal(size=shape) for name, shape in shapes.items()},
        "fitted": gpuclf.SoftmaxClassifier(random_state=0).fit(X, y),
    }


@contextlib.contextmanager
def files():
    """Be in a folder with the files that the cases speak of."""
    found = _names()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("folder").mkdir()
        np.savez("samples.npz", samples=found["X"], y=found["y"])
        np.savez("named.npz", X=found["pixels"], y=found["y"])
        np.save("rows.npy", found["pixels"])
        yield


def run(code):
    """Run what a user writes, Python or a command."""
    if not code.startswith("gpuclf "):
        return eval(code, dict(_names()))
    with contextlib.redirect_stdout(io.StringIO()):
        return app(shlex.split(code)[1:], standalone_mode=False)


def raised(case):
    """Return what a case raises, and its message without what the command line puts before it."""
    try:
        run(case.call)
    except Exception as error:
        return error, getattr(error, "message", str(error))
    raise AssertionError(f"nothing is raised by {case.call}")


def page():
    """Return docs/errors.md."""
    parts = [INTRODUCTION]  # each ends with an empty line
    for topic, cases in CASES.items():
        rows = []
        for case in cases:
            message = " ".join(raised(case)[1].split())
            rows.append([f"`{case.call}`", message, case.remedy and f"`{case.remedy}`"])
        columns = ["written", "what is said", "what works instead"]
        if not any(case.remedy for case in cases):
            columns, rows = columns[:2], [row[:2] for row in rows]
        parts.append(f"## {topic}\n\n{markdown_table(columns, rows, n_left=3)}\n")
    return "\n".join(parts)


INTRODUCTION = """\
# What errors say

Bad inputs, the message that each brings, and what the message advises, as code that works: all of
it is run by the tests, and this page is written from them (`python tests/bad_inputs.py`).

Here X is (30, 6), y (30,) with three labels, W (6, 3), `params` those of a net, `images`
(30, 8, 8, 3) bytes and `pixels` the same as rows; `holed` is X with a NaN, `fitted` a classifier
of X; `named.npz` has X and y, `samples.npz` samples and y, `rows.npy` has no labels beside it.
"""


if __name__ == "__main__":
    with files():
        PAGE.write_text(page(), encoding="utf-8")
