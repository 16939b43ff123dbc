"""
First ten minutes
=================

Train a classifier, look at what it learned, keep it, and search for better settings. The images are
the handwritten digits that come with scikit-learn, so nothing has to be downloaded; the pictures
need matplotlib (`pip install matplotlib`). `gpuclf.datasets.load_cifar10()` loads the real thing.
"""

# %%
# The images
# ----------
# An image is a row of bytes, here of 8 x 8 grey pixels.
import numpy as np
from sklearn.datasets import load_digits

import gpuclf
from gpuclf.plots import plot_samples

digits = load_digits()
X, y = (digits.data * 15).astype(np.uint8), digits.target
X_train, y_train, X_test, y_test = X[:1_400], y[:1_400], X[1_400:], y[1_400:]
plot_samples(X_train[:16], y_train[:16], image_shape=(8, 8))

# %%
# Train
# -----
# The classifiers have scikit-learn's interface. The pixels stay bytes: they are standardised on the
# fly, inside the first product.
softmax = gpuclf.SoftmaxClassifier(max_iter=20, random_state=0)
softmax.fit(X_train, y_train, X_val=X_test, y_val=y_test)
print(f"{softmax.score(X_test, y_test):.3f} of the test images are right")

# %%
# How the loss fell, and what each class looks for:
from gpuclf.plots import plot_history, plot_templates

plot_history(softmax)

# %%
plot_templates(softmax, (8, 8), class_names=range(10))

# %%
# What it gets wrong
# ------------------
from gpuclf.plots import plot_confusion_matrix

predicted = softmax.predict(X_test)
plot_confusion_matrix(y_test, predicted)

# %%
# One wrong answer taken apart: which pixels spoke for the class, and which for its closest rival.
from gpuclf.plots import plot_explanation

wrong = np.flatnonzero(predicted != y_test)[0]
plot_explanation(gpuclf.explain(softmax, X_test[wrong]), image_shape=(8, 8))

# %%
# Keep it
# -------
# A model is a safetensors file. Nothing in it runs when it is loaded.
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "softmax.safetensors"
    softmax.save(path)
    loaded = gpuclf.load(path)
print(f"the same answers after loading: {(loaded.predict(X_test) == predicted).all()}")

# %%
# Search
# ------
# The candidates of a fold are trained together, in one wide product.
search = gpuclf.FleetSearchCV(
    gpuclf.SoftmaxClassifier(max_iter=30, random_state=0),
    {"learning_rate": [0.01, 0.03, 0.1], "reg": [1e-4, 1e-2]},
    cv=3,
)
search.fit(X_train, y_train)
print(search.best_params_, f"{search.best_score_:.3f}")

# %%
# On a GPU
# --------
# The arrays decide where the work happens. `get_backend` says what there is here:
backend = gpuclf.get_backend("auto")
print(backend)
X_there, y_there = gpuclf.to_device(X_train, backend), gpuclf.to_device(y_train, backend)
softmax.fit(X_there, y_there)
print(type(softmax.predict(X_there)))
