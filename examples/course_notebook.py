# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---
"""CS231n's first assignment
=========================

Neighbours, SVM, softmax, net and features on `gpuclf.course`.

A notebook as a script: ``jupytext --to ipynb course_notebook.py`` makes it one, and as it is it
runs from the command line. On a GPU, hand the same cells CuPy arrays.

Run it by ::

    python examples/course_notebook.py --data cifar10 --out course.png
"""

# %%
import argparse
import os
from pathlib import Path

import numpy as np

from gpuclf.course import (
    KNearestNeighbor,
    LinearSVM,
    Softmax,
    TwoLayerNet,
    color_histogram_hsv,
    eval_numerical_gradient,
    extract_features,
    grad_check_sparse,
    hog_feature,
    load_CIFAR10,
    rel_error,
    softmax_loss_naive,
    softmax_loss_vectorized,
    svm_loss_naive,
    svm_loss_vectorized,
    visualize_grid,
)
from gpuclf.datasets import load_dataset, make_synthetic
from gpuclf.plots import import_pyplot

parser = argparse.ArgumentParser(
    description="Neighbours, SVM, softmax, net and features on gpuclf.course."
)
parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("course.png"), help="the picture")
parser.add_argument("--data", choices=["auto", "cifar10", "synthetic"], default="auto")
arguments, _ = parser.parse_known_args()  # Jupyter has arguments of its own
plt = import_pyplot()  # if it is missing, say so before the work
quick = arguments.quick

# %% [markdown]
# The images
# ----------
# `load_CIFAR10` gives them as the course does: floats 0..255 of shape (N, 32, 32, 3). Where
# CIFAR-10 is not at hand, synthetic images of the same shape stand in.


# %%
def load_images():
    """Return images and labels in the course's layout, and where they are from."""
    if arguments.data == "cifar10" and "GPUCLF_DATA" in os.environ:
        root = os.environ["GPUCLF_DATA"]
        return *load_CIFAR10(root), root
    if quick:
        (X, y), source = make_synthetic(500), "synthetic, few"
        X, X_test, y, y_test = X[:400], X[400:], y[:400], y[400:]
    else:
        dataset = load_dataset(arguments.data)
        (X, y, X_test, y_test), source = dataset, dataset.source
    X, X_test = (
        rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(float) for rows in (X, X_test)
    )
    return X, y, X_test, y_test, source


images, labels, test_images, test_labels, source = load_images()
print(source)
n_train, n_val, n_test = (300, 100, 100) if quick else (49_000, 1_000, 1_000)
n_iters = 40 if quick else 1_500
validation = {}

# %% [markdown]
# k nearest neighbours
# --------------------
# Three ways to the same distances, then the votes of one and of five neighbours.

# %%
n_known, n_asked = (200, 50) if quick else (5_000, 500)
X_known, y_known = images[:n_known].reshape(n_known, -1), labels[:n_known]
X_asked, y_asked = test_images[:n_asked].reshape(n_asked, -1), test_labels[:n_asked]
neighbors = KNearestNeighbor()
neighbors.train(X_known, y_known)
dists = neighbors.compute_distances_no_loops(X_asked)
for same in (neighbors.compute_distances_one_loop, neighbors.compute_distances_two_loops):
    few = same(X_asked[:10])  # loops take their time
    print(f"{same.__name__}: difference {np.linalg.norm(few - dists[:10]):.1e}")
right_of_k = {}
for k in (1, 5):
    right_of_k[k] = int(np.sum(neighbors.predict_labels(dists, k=k) == y_asked))
    print(f"k = {k}: {right_of_k[k]} of {n_asked} correct")

# %% [markdown]
# Cross-validation over k: each fold is asked once, the others are what is known.

# %%
X_folds, y_folds = np.array_split(X_known, 5), np.array_split(y_known, 5)
for_k = {k: [] for k in (1, 3, 5, 8, 10, 12, 15, 20, 50, 100)}
for i in range(5):
    fold = KNearestNeighbor()
    others = [j for j in range(5) if j != i]
    fold.train(
        np.concatenate([X_folds[j] for j in others]), np.concatenate([y_folds[j] for j in others])
    )
    fold_dists = fold.compute_distances_no_loops(X_folds[i])
    for k, accuracies in for_k.items():
        accuracies.append(np.mean(fold.predict_labels(fold_dists, k=k) == y_folds[i]))
for k, accuracies in for_k.items():
    print(f"k = {k:3}: accuracy {np.mean(accuracies):.3f}")

# %% [markdown]
# SVM and softmax
# ---------------
# The images become rows, the mean image is subtracted, and a column of ones stands for the bias.


# %%
def as_rows(part, mean):
    """Return centred rows with the column of ones."""
    rows = part.reshape(part.shape[0], -1)
    return np.hstack([rows - mean, np.ones((rows.shape[0], 1))])


mean_image = images[:n_train].reshape(n_train, -1).mean(axis=0)
X_train, y_train = as_rows(images[:n_train], mean_image), labels[:n_train]
X_val = as_rows(images[n_train : n_train + n_val], mean_image)
y_val = labels[n_train : n_train + n_val]
X_test, y_test = as_rows(test_images[:n_test], mean_image), test_labels[:n_test]
np.random.seed(0)  # noqa: NPY002  # the course's generator
dev = np.random.choice(n_train, min(500, n_train // 10), replace=False)  # noqa: NPY002
X_dev, y_dev = X_train[dev], y_train[dev]

# %% [markdown]
# Loops and vectorised lines agree, and so do gradients and differences. With small weights the
# softmax loss is about log(10) = 2.303, the SVM's about 9.

# %%
W = 0.0001 * np.random.randn(3073, 10)  # noqa: NPY002
first_loss, _ = softmax_loss_vectorized(W, X_dev, y_dev, 0.0)
print(f"first softmax loss {first_loss:.3f}")
for naive, vectorized in (
    (svm_loss_naive, svm_loss_vectorized),
    (softmax_loss_naive, softmax_loss_vectorized),
):
    loss, grad = naive(W, X_dev, y_dev, 0.000005)
    same_loss, same_grad = vectorized(W, X_dev, y_dev, 0.000005)
    print(f"{naive.__name__}: loss {loss:.6f}, gradient {rel_error(grad, same_grad):.1e} off")
    assert abs(loss - same_loss) < 1e-9
    grad_check_sparse(lambda w, f=vectorized: f(w, X_dev, y_dev, 0.0)[0], W, grad, 5)

# %% [markdown]
# A small search each; the best on the validation images is kept.

# %%
best = {}
for name, kind, settings in (
    ("svm", LinearSVM, [(1e-7, 2.5e4), (2e-7, 1e4)]),
    ("softmax", Softmax, [(2e-7, 2.5e4), (1e-6, 1e3)]),
):
    for learning_rate, reg in settings:
        classifier = kind()
        losses = classifier.train(X_train, y_train, learning_rate, reg, n_iters, verbose=True)
        accuracy = np.mean(classifier.predict(X_val) == y_val)
        print(f"{name}, learning rate {learning_rate:g}, reg {reg:g}: validation {accuracy:.3f}")
        if accuracy > validation.get(name, -1):
            validation[name], best[name] = accuracy, classifier
    print(f"{name}: test accuracy {np.mean(best[name].predict(X_test) == y_test):.3f}")

# %% [markdown]
# The two-layer net
# -----------------
# First the gradients of a toy net, then one of 50 hidden units, without the column of ones.

# %%
np.random.seed(0)  # noqa: NPY002
toy = TwoLayerNet(4, 10, 3, std=1e-1)
np.random.seed(1)  # noqa: NPY002
X_toy, y_toy = 10 * np.random.randn(5, 4), np.array([0, 1, 2, 2, 1])  # noqa: NPY002
loss, grads = toy.loss(X_toy, y_toy, reg=0.05)
print(f"toy net: loss {loss:.11f}, the course has 1.30378789133")
for name, gradient in grads.items():
    numeric = eval_numerical_gradient(
        lambda _: toy.loss(X_toy, y_toy, reg=0.05)[0], toy.params[name], verbose=False
    )
    print(f"{name}: relative error {rel_error(numeric, gradient):.1e}")

net = TwoLayerNet(3072, 50, 10)
stats = net.train(
    *(X_train[:, :-1], y_train, X_val[:, :-1], y_val),
    learning_rate=1e-3, reg=0.25, num_iters=n_iters, verbose=True,
)  # fmt: skip
validation["net"] = np.mean(net.predict(X_val[:, :-1]) == y_val)
print(f"net: validation {validation['net']:.3f}")

# %% [markdown]
# Features
# --------
# Directions of edges and hues: 154 numbers an image, from its pixels as they were loaded.

# %%
functions = [hog_feature, lambda image: color_histogram_hsv(image, nbin=10)]
F_train, F_val, F_test = (
    extract_features(part, functions, verbose=True)
    for part in (images[:n_train], images[n_train : n_train + n_val], test_images[:n_test])
)
mean, scale = F_train.mean(axis=0), F_train.std(axis=0) + 1e-12
F_train, F_val, F_test = (
    np.hstack([(F - mean) / scale, np.ones((len(F), 1))]) for F in (F_train, F_val, F_test)
)
svm = LinearSVM()
svm.train(F_train, y_train, learning_rate=3e-3, reg=1e-2, num_iters=n_iters)
validation["svm on features"] = np.mean(svm.predict(F_val) == y_val)
feature_net = TwoLayerNet(154, 500, 10, std=1e-2)
feature_net.train(
    *(F_train[:, :-1], y_train, F_val[:, :-1], y_val),
    learning_rate=0.4, reg=1e-3, num_iters=2 * n_iters,
)  # fmt: skip
validation["net on features"] = np.mean(feature_net.predict(F_val[:, :-1]) == y_val)
print(f"net on features: test {np.mean(feature_net.predict(F_test[:, :-1]) == y_test):.3f}")
for name, accuracy in validation.items():
    print(f"{name}: validation {accuracy:.3f}")

# %% [markdown]
# What the classes of the linear classifiers and the hidden units look for.

# %%
figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
for ax, title, weights in (
    (axes[0], "SVM", best["svm"].W[:-1]),
    (axes[1], "softmax", best["softmax"].W[:-1]),
    (axes[2], "hidden units", net.params["W1"]),
):
    ax.imshow(visualize_grid(weights.reshape(32, 32, 3, -1).transpose(3, 0, 1, 2)) / 255)
    ax.set_title(title)
    ax.set_axis_off()
axes[3].plot(stats["loss_history"])
axes[3].set(title="loss of the net", xlabel="step")
figure.savefig(arguments.out, dpi=100)
print(f"drawn to {arguments.out}")
