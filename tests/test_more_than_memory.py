"""A file on disk, larger than the memory that a process may have, trains by blocks."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

SCRIPT = """
import resource, sys
import numpy as np
from gpuclf import SoftmaxClassifier, Streamed, TwoLayerNetClassifier

def held():  # what is the process's own: files that are mapped are not
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))

KINDS = {
    "lbfgs": SoftmaxClassifier(solver="lbfgs", max_iter=2, tol=1e-9, random_state=0),
    "sgd": SoftmaxClassifier(max_iter=1, random_state=0),
    "two-layer": TwoLayerNetClassifier(hidden_size=4, max_iter=1, random_state=0),
}
path, kind, room = sys.argv[1:]
model = KINDS[kind]
X = np.load(path, mmap_mode="r")
y = np.arange(len(X)) % 4
few = np.array(X[:4000])
model.fit(Streamed(few, "numpy", memory_budget=16 << 20), y[:4000])  # loads, compiles, starts
model.predict(Streamed(few, "numpy", memory_budget=16 << 20))
limit = held() + int(room)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    X + np.uint8(1)
    print("there is room for a copy")
except MemoryError:
    pass
samples = Streamed(X, "numpy", memory_budget=16 << 20)
model.fit(samples, y)
assert model.score(samples, y) > 0.9
print("trained on", X.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's own data is Linux's")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "kind",
    [
        "lbfgs",
        pytest.param("sgd", marks=pytest.mark.nightly),
        pytest.param("two-layer", marks=pytest.mark.nightly),
    ],
)
def test_a_mapped_file_larger_than_the_memory_trains(tmp_path, kind):
    path, n_samples, n_features = tmp_path / "X.npy", 60_000, 3072
    X = np.lib.format.open_memmap(path, "w+", np.uint8, (n_samples, n_features))
    rows = np.arange(n_samples)
    X[rows, rows % 4 * 700] = 200  # the rest of the file are holes
    X.flush()
    room = X.nbytes // 2  # less than one copy, even of the bytes
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), path, kind]
    done = subprocess.run([*command, str(room)], capture_output=True, text=True, check=False)
    assert done.stdout == f"trained on {X.nbytes}\n", done.stderr[-2000:]
