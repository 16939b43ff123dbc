"""scikit-learn's own tests of its k-NN classifier, over gpuclf's."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# What is not run, by a part of the test's name, and why.
EXCLUDED = {
    "chebyshev": "metrics are l2, l1 and cosine",
    "minkowski_semimetric": "metrics are l2, l1 and cosine; no Minkowski distances of any p",
    "metric_params_interface": "metrics have no parameters",
    "precomputed": "no distances in place of samples",
    "sparse": "no sparse samples",
    "validate_parameters": "no sparse samples; errors are worded otherwise",
    "multioutput": "one label a sample",
    "nan_euclidean": "no missing values",
    "unsupervised_inputs": "no trees or fitted searches in place of samples",
    "raise_on_all_zero_weights": "the error is worded otherwise",
}
TESTS = (
    "KNeighborsClassifier or kneighbors_classifier or neighbors_iris or neighbors_digits or "
    "same_knn_parallel or knn_forcing_backend or dtype_convert or predict_dataframe or precomputed "
    "or metric_params_interface or loocv"
)
OF_OTHERS = "Regressor or Radius or Transformer or regressor"


@pytest.mark.nightly
@pytest.mark.slow
def test_scikit_learns_own_tests_of_its_classifier(tmp_path):
    pytest.importorskip("sklearn.neighbors.tests", reason="scikit-learn comes without its tests")
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
        )
    }
    left_out = " or ".join(EXCLUDED)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rA", "-c", os.devnull),
            *("--rootdir", tmp_path, "-p", "scikit_learn_shim", "-p", "no:cacheprovider"),
            *("--pyargs", "sklearn.neighbors.tests.test_neighbors"),
            *("-k", f"({TESTS}) and not ({OF_OTHERS} or {left_out})"),
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    outcomes = Counter(re.findall(r"^(PASSED|FAILED|ERROR)\b", run.stdout, re.MULTILINE))
    assert run.returncode == 0, run.stdout[-4000:]
    assert outcomes["PASSED"] >= 80, outcomes
