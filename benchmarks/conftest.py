"""What the benchmarks share: how many samples, and the arrays that they run on."""

import pytest

from gpuclf.bench import Inputs
from gpuclf.datasets import load_dataset
from gpuclf.devices.machine import environment

ALL_SAMPLES = 50_000  # of CIFAR-10's training set, and of the synthetic one


def pytest_addoption(parser):
    parser.addoption(
        "--bench-samples",
        type=int,
        default=ALL_SAMPLES,
        metavar="N",
        help="Use the first N training images only (default: all), for a smoke run.",
    )


def pytest_configure(config):
    n_samples = config.getoption("--bench-samples")
    if not 200 <= n_samples <= ALL_SAMPLES:
        raise pytest.UsageError(
            f"--bench-samples must be in 200..{ALL_SAMPLES:,} (a mini-batch has 200), "
            f"got {n_samples}"
        )


def pytest_benchmark_update_machine_info(machine_info):
    """Record what `gpuclf bench --compare` wants to know."""
    machine_info["gpuclf"] = environment()


@pytest.fixture(scope="session")
def bench_dataset():
    """Load CIFAR-10 if it is on disk, else synthetic images."""
    return load_dataset("auto")


@pytest.fixture(scope="session")
def bench_inputs(request, bench_dataset):
    """Make the arrays, in float32, for every implementation."""
    rows = slice(request.config.getoption("--bench-samples"))
    return Inputs(bench_dataset.X_train[rows], bench_dataset.y_train[rows])
