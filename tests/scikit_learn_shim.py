"""A pytest plugin: scikit-learn's own tests of its k-NN classifier find gpuclf's in its place."""

import sklearn.neighbors
from sklearn.neighbors._base import KNeighborsMixin

import gpuclf


class KNeighborsClassifier(gpuclf.KNeighborsClassifier, KNeighborsMixin):
    """Takes scikit-learn's hyper-parameters; how it searches is its own business.

    From the mixin, which tests ask for, it has kneighbors_graph: a sparse matrix of the neighbours.
    """

    def __init__(
        self, n_neighbors=5, *, weights="uniform", algorithm="auto", leaf_size=30, p=2,
        metric="minkowski", metric_params=None, n_jobs=None,
    ):  # fmt: skip
        super().__init__(n_neighbors, weights=weights, metric=metric)
        self.algorithm, self.leaf_size, self.p = algorithm, leaf_size, p
        self.metric_params, self.n_jobs = metric_params, n_jobs

    def fit(self, X, y):
        if self.metric == "minkowski":
            self.metric = {1: "manhattan", 2: "euclidean"}[self.p]
        return super().fit(X, y)


sklearn.neighbors.KNeighborsClassifier = KNeighborsClassifier
