"""A plugin of pytest that runs scikit-learn's own test_logistic.py over SoftmaxClassifier.

Run by test_scikit_learns_logistic.py; what passes, fails and is excluded, with the reason, goes to
the file $GPUCLF_SHIM_REPORT.
"""

import json
import os
from pathlib import Path

import numpy as np

import gpuclf
from gpuclf.estimators.surface import weights_by_class

found = {"passed": [], "failed": [], "skipped": [], "excluded": {}}

# What SoftmaxClassifier is not, by the name of the test.
OTHER_CLASS = "about LogisticRegressionCV, paths or other private functions"
OTHER_SOLVER = "another solver of scikit-learn's"
OTHER_PENALTY = "L1 or elastic net, or no penalty of their kind"
SPARSE = "sparse samples, which are refused"
OWN_WORDS = "the words of LogisticRegression's messages, or its deprecated parameters"
NO_BIAS = "fit_intercept=False, where there is always a bias"
EXCLUDED = {
    "test_predict_2_classes": SPARSE,
    "test_predict_3_classes": SPARSE,
    "test_sparsify": SPARSE,
    "test_large_sparse_matrix": SPARSE,
    "test_logistic_cv_sparse": SPARSE,
    "test_logreg_l1": OTHER_PENALTY,
    "test_saga_vs_liblinear": OTHER_SOLVER,
    "test_warm_start_newton_solver": OTHER_SOLVER,
    "test_warm_start_converge_LR": OTHER_SOLVER,
    "test_single_feature_newton_cg": OTHER_SOLVER,
    "test_newton_cholesky_fallback_to_lbfgs": OTHER_SOLVER,
    "test_logistic_regression_solvers": OTHER_SOLVER,
    "test_logistic_regression_solvers_multiclass": OTHER_SOLVER,
    "test_logistic_regression_solvers_multiclass_unpenalized": OTHER_SOLVER,
    "test_multinomial_logistic_regression_string_inputs": OTHER_CLASS,
    "test_logistic_regression_path_convergence_fail": OTHER_CLASS,
    "test_logistic_regression_path_coefs_multinomial": OTHER_CLASS,
    "test_logistic_regression_path_init_coefs": OTHER_CLASS,
    "test_consistency_path": OTHER_CLASS,
    "test_lr_cv_scores_differ_when_sample_weight_is_requested": OTHER_CLASS,
    "test_lr_cv_scores_without_enabling_metadata_routing": OTHER_CLASS,
    "test_passing_params_without_enabling_metadata_routing": OTHER_CLASS,
    "test_get_default_scorer": OTHER_CLASS,
    "test_lr_scoring_warns": OTHER_CLASS,
    "test_scores_attribute_layout_elasticnet": OTHER_CLASS,
    "test_check_solver_option": OWN_WORDS,
    "test_logisticregression_warns_with_n_jobs": OWN_WORDS,
    "test_penalty_deprecated": OWN_WORDS,
    "test_lr_penalty_l1ratio_incompatible": OWN_WORDS,
    "test_l1_ratio_None_deprecated": OWN_WORDS,
    "test_max_iter": OWN_WORDS,
    "test_logistic_regression_cv_refit": OTHER_CLASS,
    "test_logreg_intercept_scaling_zero": NO_BIAS,
    "test_logistic_regression_callback_support[2]": "an iteration that never runs is no task here",
    "test_logistic_regression_callback_support_warning": OTHER_SOLVER,
    "test_c_inf_no_warning": OTHER_PENALTY,
    "test_penalty_none": OTHER_PENALTY,
    "test_multinomial_cv_iris": OTHER_CLASS,
    "test_zero_max_iter": "max_iter=0, which is refused",
    "test_write_parameters": "coef_ is computed from params_, and writing to it changes nothing",
    "test_logreg_predict_proba_multinomial": "calls a private method of scikit-learn's",
}
BY_WORD = {
    "liblinear": OTHER_SOLVER,
    "elastic": OTHER_PENALTY,
    "l1_ratio": OTHER_PENALTY,
    "l1_l2": OTHER_PENALTY,
    "LogisticRegressionCV": OTHER_CLASS,
    "regressioncv": OTHER_CLASS,
    "logistic_cv": OTHER_CLASS,
    "array_api": "scikit-learn's dispatch; tests/test_estimators.py covers array libraries",
}


class LogisticRegression(gpuclf.SoftmaxClassifier):
    """scikit-learn's parameters and defaults on SoftmaxClassifier."""

    def __init__(
        self, *, C=1.0, tol=1e-4, fit_intercept=True, class_weight=None, random_state=None,
        solver="lbfgs", max_iter=100, verbose=0, warm_start=False,
    ):  # fmt: skip
        super().__init__(
            solver=solver, tol=tol, class_weight=class_weight, random_state=random_state,
            max_iter=max_iter, verbose=verbose, warm_start=warm_start, standardize=False,
        )  # fmt: skip
        # There is always a bias: tests that compare two fits with one another do not mind.
        self.C, self.fit_intercept = C, fit_intercept

    def fit(self, X, y, sample_weight=None):
        labels, targets = np.unique(np.asarray(y), return_inverse=True)
        weights = np.ones(len(targets)) if sample_weight is None else np.asarray(sample_weight)
        total = weights.sum()
        if len(weights) == len(targets):
            total = weights_by_class(self.class_weight, labels, targets, weights).sum()
        self.reg = 1 / ((1 if len(labels) == 2 else 2) * self.C * total)
        tol, self.tol = self.tol, self.tol / total  # theirs is on the sum
        try:
            return super().fit(X, y, sample_weight)
        finally:
            self.tol = tol

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return np.array([value]) if name == "n_iter_" else value


def why_excluded(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for name in (item.name, item.originalname):
        if name in EXCLUDED:
            return EXCLUDED[name]
    if params.get("problem") == "cv":
        return OTHER_CLASS
    if params.get("solver", "lbfgs") != "lbfgs":
        return OTHER_SOLVER
    if params.get("fit_intercept", True) is False:
        return NO_BIAS
    if params.get("max_iter") == 0:
        return "max_iter=0, which is refused"
    container = params.get("csr_container")
    if container is not None and container.__name__ != "<lambda>":
        return SPARSE
    for word, reason in BY_WORD.items():
        if word in item.name:
            return reason
    return None


def pytest_collection_modifyitems(config, items):
    kept = []
    for item in items:
        item.module.LogisticRegression = LogisticRegression
        item.module.SOLVERS = ("lbfgs",)
        reason = why_excluded(item)
        if reason is None:
            kept.append(item)
        else:
            found["excluded"][item.name] = reason
    items[:] = kept


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        found[report.outcome].append(report.nodeid.partition("::")[2])


def pytest_sessionfinish():
    Path(os.environ["GPUCLF_SHIM_REPORT"]).write_text(json.dumps(found), encoding="utf-8")
