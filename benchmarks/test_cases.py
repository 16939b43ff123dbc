"""The four cases of `gpuclf bench` under pytest-benchmark, each implementation on its own."""

import pytest

from gpuclf.backend import synchronize, to_host
from gpuclf.benchmark import IMPLEMENTATIONS, Case, Unavailable, default_cases
from gpuclf.benchmark.implementations import textbook_numpy
from gpuclf.benchmark.timing import TOLERANCES

NAIVE_ROUNDS = 3


def pytest_generate_tests(metafunc):
    cases = default_cases(metafunc.config.getoption("--bench-samples"))
    pairs = {  # at 200 samples a mini-batch is the training set: the same case only once
        f"{case.operation.split()[0]}-{case.samples}-{_slug(implementation.name)}": (
            case,
            implementation,
        )
        for case in cases
        for implementation in IMPLEMENTATIONS
    }
    metafunc.parametrize(("case", "implementation"), pairs.values(), ids=list(pairs))


def _slug(name):
    return name.lower().replace(",", "").replace(" ", "-")


def test_case(benchmark, bench_inputs, bench_dataset, case, implementation):
    try:
        call = implementation.prepare(case, bench_inputs)
    except Unavailable as reason:
        pytest.skip(str(reason))
    measured = (
        min(case.naive_samples, case.samples) if implementation.extrapolated else case.samples
    )
    benchmark.group = case.title
    benchmark.extra_info.update(
        operation=case.operation,
        implementation=implementation.name,
        array_library=implementation.array_library,
        features=implementation.features,
        dtype=bench_inputs.dtype.name,
        samples=case.samples,
        measured_samples=measured,
        extrapolated=measured < case.samples,
        data=bench_dataset.source,
    )

    def finished_call():
        loss, _ = call()
        synchronize(loss if hasattr(loss, "dtype") else None)
        return loss

    rounds = NAIVE_ROUNDS if implementation.extrapolated else case.rounds * case.calls_a_turn
    loss = benchmark.pedantic(finished_call, rounds=rounds, warmup_rounds=1)

    same_samples = Case(case.operation, measured, measured, 1)
    expected, _ = textbook_numpy(same_samples, bench_inputs)()
    assert float(to_host(loss)) == pytest.approx(
        float(expected), rel=TOLERANCES[bench_inputs.dtype.name]
    )
