"""
Every picture
=============

Each function of :mod:`gpuclf.plots` draws into the Axes that it is given, or into a new figure, and
returns the Axes: `plot_history(model).figure.savefig("loss.png")`.
"""

# %%
# What they draw here: a linear classifier and a net, trained on scikit-learn's digits.
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import gpuclf
from gpuclf import plots

digits = load_digits()
X, y = (digits.data * 15).astype(np.uint8), digits.target
X_train, y_train, X_val, y_val = X[:1_000], y[:1_000], X[1_000:], y[1_000:]
common = {"max_iter": 10, "random_state": 0}
softmax = gpuclf.SoftmaxClassifier(**common).fit(X_train, y_train, X_val=X_val, y_val=y_val)
net = gpuclf.TwoLayerNetClassifier(hidden_size=50, **common)
net.fit(X_train, y_train, X_val=X_val, y_val=y_val)

# %%
# `plot_history`: is it still learning, and does it overfit?
plots.plot_history(net)

# %%
# `plot_runs`: which training was better, and when?
plots.plot_runs({"softmax": softmax.val_accuracy_history_, "net": net.val_accuracy_history_})

# %%
# `plot_templates`: what does each class look for?
plots.plot_templates(softmax, (8, 8), class_names=range(10))

# %%
# `plot_samples`: which samples are wrong, and what were they taken for?
predicted = softmax.predict(X_val)
plots.plot_samples(X_val[:24], y_val[:24], predicted[:24], image_shape=(8, 8))

# %%
# `plot_confusion_matrix`: which classes are mixed up?
plots.plot_confusion_matrix(y_val, predicted)

# %%
# `plot_explanation`: which pixels spoke for the answer?
plots.plot_explanation(gpuclf.explain(softmax, X_val[3]), image_shape=(8, 8))

# %%
# `plot_knn_cross_validation`: how many neighbours?
from gpuclf.models.neighbors import cross_validate_k

plots.plot_knn_cross_validation(cross_validate_k(X_train, y_train, [1, 3, 5, 10, 20], n_folds=5))

# %%
# `plot_search`: where are the good settings? This one is the recorded search on CIFAR-10. Name the
# folder `benchmarks/results` of your checkout, as seen from where this runs.
results = Path("../../benchmarks/results")
plots.plot_search(json.loads((results / "fleet.json").read_text())["course_search"]["results"])

# %%
# `plot_decision_boundary`: where does the answer change? For two features.
spiral, arms = gpuclf.datasets.make_spiral(n_per_class=100, n_classes=3, seed=0)
curved = gpuclf.TwoLayerNetClassifier(hidden_size=100, max_iter=200, random_state=0)
plots.plot_decision_boundary(curved.fit(spiral, arms).predict, spiral, arms)

# %%
# `plot_ladder`: how do the ways of computing the same thing compare? Also recorded on CIFAR-10.
rows = json.loads((results / "ladder.json").read_text())["rows"]
plots.plot_ladder([row for row in rows if row["case"] == rows[0]["case"]])
