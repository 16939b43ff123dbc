"""scikit-learn's own tests of LogisticRegression, over SoftmaxClassifier."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import logistic_shim
import pytest
import sklearn

import gpuclf

OF_SCIKIT_LEARN = "sklearn.linear_model.tests.test_logistic"
N_PASSED = 16
NEWEST_KNOWN = "1.9."  # other versions have other tests: those that are new there may fail


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(
    not sklearn.__version__.startswith(NEWEST_KNOWN),
    reason=f"the exclusions are those of scikit-learn {NEWEST_KNOWN}*",
)
def test_the_dense_part_of_scikit_learns_tests_passes(tmp_path):
    report = tmp_path / "report.json"
    paths = [str(Path(place).parent) for place in (gpuclf.__path__[0], logistic_shim.__file__)]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "logistic_shim"),
            *("-p", "no:cacheprovider", "--pyargs", OF_SCIKIT_LEARN),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GPUCLF_SHIM_REPORT": str(report)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["failed"] == [], run.stdout
    counts = Counter(found["excluded"].values())
    summary = "\n".join(f"{count:4} {reason}" for reason, count in counts.most_common())
    print(f"{len(found['passed'])} passed; excluded:\n{summary}")
    assert len(found["passed"]) >= N_PASSED
    assert found["skipped"] == []
    names = {name.partition("[")[0] for name in found["excluded"]} | set(found["excluded"])
    assert set(logistic_shim.EXCLUDED) <= names  # no exclusion without its test
