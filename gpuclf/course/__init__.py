"""The names and signatures of Stanford CS231n's first assignment, over this library's functions.

A notebook of the assignment (k-NN, SVM, softmax, two-layer net, features) runs with its import
lines changed to ``from gpuclf.course import ...``, and on a GPU when it is handed CuPy arrays::

    from cs231n.data_utils import load_CIFAR10                    # before
    from cs231n.classifiers.softmax import softmax_loss_naive
    from cs231n.classifiers import KNearestNeighbor, Softmax

    from gpuclf.course import load_CIFAR10, softmax_loss_naive    # after
    from gpuclf.course import KNearestNeighbor, Softmax

As in the course, parameters and mini-batches (with replacement) are drawn from NumPy's global
generator, on the host: ``numpy.random.seed`` gives the course's numbers, on every device. The
penalty is ``reg * sum(W * W)``. A training that diverges goes on with NaN, as the course's does, so
that a search over learning rates reaches its end; a RuntimeWarning then says what to do.

Source: Stanford CS231n, assignment 1 (2017 to 2019, whose net is a class of its own).
"""

from gpuclf.course.classifiers import (
    KNearestNeighbor,
    LinearClassifier,
    LinearSVM,
    Softmax,
    TwoLayerNet,
    softmax_loss_naive,
    svm_loss_naive,
)
from gpuclf.course.gradient_check import (
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    grad_check_sparse,
    rel_error,
)
from gpuclf.course.images import (
    color_histogram_hsv,
    extract_features,
    hog_feature,
    load_CIFAR10,
    visualize_grid,
)
from gpuclf.models.linear import softmax_loss_vectorized, svm_loss_vectorized

__all__ = [
    "KNearestNeighbor",
    "LinearClassifier",
    "LinearSVM",
    "Softmax",
    "TwoLayerNet",
    "color_histogram_hsv",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "extract_features",
    "grad_check_sparse",
    "hog_feature",
    "load_CIFAR10",
    "rel_error",
    "softmax_loss_naive",
    "softmax_loss_vectorized",
    "svm_loss_naive",
    "svm_loss_vectorized",
    "visualize_grid",
]
