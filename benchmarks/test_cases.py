"""The cases of `gpuclf bench` under pytest-benchmark, each implementation on its own."""

import pytest

from gpuclf.bench import (
    IMPLEMENTATIONS,
    PEERS,
    Reference,
    Unavailable,
    default_cases,
    peer_cases,
    scaling_cases,
)
from gpuclf.bench.measure.timing import SLOW_ROUNDS, new_row
from gpuclf.devices.backends import synchronize


def pytest_generate_tests(metafunc):
    n_samples = metafunc.config.getoption("--bench-samples")
    fast = [i for i in IMPLEMENTATIONS if not i.extrapolated]
    # At 200 samples a mini-batch is the training set: the same case only once. The cases of the
    # ladder come last, because they have all implementations.
    lists = (
        (peer_cases(n_samples), fast + PEERS),
        (scaling_cases(n_samples), fast),
        (default_cases(n_samples), IMPLEMENTATIONS),
    )
    pairs = {
        _slug(f"{case.title} {implementation.name}"): (case, implementation)
        for cases, implementations in lists
        for case in cases
        for implementation in implementations
    }
    metafunc.parametrize(("case", "implementation"), pairs.values(), ids=list(pairs))


def _slug(name):
    return name.lower().replace(",", "").replace("loss+gradient ", "").replace(" ", "-")


def test_case(benchmark, bench_inputs, bench_dataset, case, implementation):
    inputs = bench_inputs.with_classes(case.classes)
    row = new_row(case, inputs, implementation, {})
    try:
        call = implementation.prepare(case, inputs)
    except Unavailable as reason:
        pytest.skip(str(reason))
    Reference(case, inputs).check(implementation, call)  # raises where the result is another
    benchmark.group = case.title
    benchmark.extra_info.update(
        {name: value for name, value in row.as_dict().items() if value is not None},
        data=bench_dataset.source,
    )

    def finished_call():
        result = call()
        if implementation.wait is not None:
            implementation.wait(result)
        synchronize()

    rounds = SLOW_ROUNDS if implementation.extrapolated else case.rounds * case.calls_a_turn
    benchmark.pedantic(finished_call, rounds=rounds, warmup_rounds=1)
