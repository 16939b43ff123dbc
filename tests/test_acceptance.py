"""The acceptance command and what it judges with, without a GPU."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_cases import CEILINGS, OF_SOFTMAX, STEPS, make_inputs, tiny_case

import gpuclf
from gpuclf import arrays
from gpuclf.bench import Reference, device_cases, device_implementations, device_peers, run_case
from gpuclf.bench.measure import devices, implementations, peers, roofline
from gpuclf.bench.measure.agreement import on_host, share_of_allowed
from gpuclf.bench.measure.devices import CudaDevice
from gpuclf.bench.measure.roofline import measure_ceilings
from gpuclf.devices import backends
from gpuclf.devices.cupy import CupyProbe
from gpuclf.dispatch import SEAMS, fusable
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models import MODELS
from gpuclf.samples import streamed as streaming

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the benchmarks are not installed

from benchmarks import acceptance, parity  # noqa: E402
from benchmarks import acceptance_context as shared  # noqa: E402
from benchmarks import acceptance_steps as steps  # noqa: E402

FLOATS = device_implementations("cpu")[1]


def true_results(case):
    return Reference(case, make_inputs("float64")).results(case.samples)


def spoiled(spoil, name="the wrong one"):
    def prepare(case, inputs):
        call = FLOATS.prepare(case, inputs)
        return lambda: spoil(*call())

    return replace(FLOATS, name=name, prepare=prepare)


def failing_after(n_calls, error):
    """The check and the warm-ups take 4 calls."""
    calls = []

    def count(loss, dW):
        calls.append(None)
        if len(calls) > n_calls:
            raise error
        return loss, dW

    return spoiled(count, name="late")


def test_every_row_computes_where_its_backend_is(strict):
    elsewhere = backends.Backend("cupy", strict.xp, "in CuPy's place")
    ((loss, grads),) = true_results(tiny_case())
    for prepare, options in (
        (implementations.gpuclf_floats, {}),
        (implementations.gpuclf_bytes, {}),
        (implementations.gpuclf_bytes, {"uploads": "before"}),
        (implementations.gpuclf_bytes, {"uploads": "streamed"}),
    ):
        found_loss, found = prepare(tiny_case(), make_inputs(), elsewhere, **options)()
        assert arrays.array_namespace(found["W"]) is arrays.array_namespace(strict.asarray([0]))
        assert float(found_loss) == pytest.approx(float(loss), rel=1e-5)
        np.testing.assert_allclose(np.asarray(found["W"]), grads["W"], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------ peers on a device


@pytest.mark.slow
def test_on_a_cpu_graphs_say_why_they_are_not_there():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    graphed = next(peer for peer in device_peers() if peer.name == "PyTorch graphed")
    (row,) = run_case(tiny_case(), make_inputs(), [graphed])
    assert (row.status, row.reason) == ("unavailable", "CUDA graphs need a CUDA device")


@pytest.fixture
def fake_cuda_graphs(monkeypatch):
    """Graphs that record nothing: what is captured has run once, and a replay repeats nothing."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    made = SimpleNamespace(graphs=[], replays=0)

    class Graph:
        def __init__(self):
            made.graphs.append(self)

        def replay(self):
            made.replays += 1

    class Context:
        def __init__(self, _):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": Graph, "graph": Context, "stream": Context, "Stream": lambda: stream}
    for name, fake in (fakes | {"current_stream": lambda: stream}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    made.torch = torch
    return made


@pytest.mark.slow
@pytest.mark.parametrize("of", [OF_SOFTMAX, STEPS], ids=["softmax", "step"])
def test_a_graph_is_captured_for_each_copy_and_begins_at_the_same_parameters(fake_cuda_graphs, of):
    torch, inputs = fake_cuda_graphs.torch, make_inputs(cache_bytes=2000)
    case = tiny_case(of)
    evaluate, state = peers._torch_loss(torch, case, inputs, "graphed")
    copies = peers.copied(inputs.floats, inputs, torch.tensor)
    graphs = itertools.cycle(peers._captured(torch, evaluate, copies, **state))
    assert len(fake_cuda_graphs.graphs) == inputs.copies(inputs.floats.nbytes) == 4
    first = inputs.start(case)
    for name, value in state["params"].items():
        np.testing.assert_array_equal(value.detach().numpy(), first[name])
        for buffer in state["optimizer"].state[value].values():
            assert buffer is None or not buffer.any()
    results = [peers._replay(*next(graphs)) for _ in range(8)]
    assert fake_cuda_graphs.replays == 8
    if of == OF_SOFTMAX:
        ((loss, grads),) = true_results(case)
        for found_loss, found in results:
            assert float(found_loss) == pytest.approx(float(loss), rel=1e-5)
            np.testing.assert_allclose(on_host(found["W"]), grads["W"], rtol=1e-3, atol=1e-5)
        assert results[0][1]["W"] is not results[1][1]["W"]  # gradients of their own
        assert results[0][1]["W"] is results[4][1]["W"]


# ----------------------------------------------------------------------- the GPU's own lines


class NullStream(nullcontext):
    pass


class FakeEvent:
    clock = 0.0
    done = False

    def record(self, stream):
        assert isinstance(stream, NullStream)
        FakeEvent.clock += 1.0
        self.ms = FakeEvent.clock


class FakeCupy(SimpleNamespace):
    """NumPy, with the few names of CuPy that clock and ceilings use."""

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def fake_cupy(monkeypatch):
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    device = SimpleNamespace(synchronize=lambda: None, attributes={"L2CacheSize": 4096})

    class Array(np.ndarray):
        def set(self, host):
            self[...] = host

    class RawKernel:
        def __init__(self, code, name):
            assert f"void {name}(long long " in code

        def __call__(self, grid, block, args):
            cupy.held.append(args[0])

    cupy = FakeCupy(
        held=[],
        RawKernel=RawKernel,
        asarray=lambda x: np.asarray(x).view(Array),
        empty=lambda *args: np.empty(*args).view(Array),
        cuda=SimpleNamespace(
            Device=lambda: device,
            Event=FakeEvent,
            Stream=SimpleNamespace(null=NullStream()),
            get_elapsed_time=lambda a, b: b.ms - a.ms,
            alloc_pinned_memory=bytearray,
            set_allocator=lambda allocator: None,
        ),
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
    )
    for module in (devices, implementations, backends, streaming):
        monkeypatch.setattr(
            module, "get_backend", lambda name="auto": backends.Backend("cupy", cupy, "pretended")
        )
    return cupy


def test_ceilings_are_rates_of_the_fastest_call(fake_cupy, monkeypatch):
    monkeypatch.setattr(roofline, "TORCH_PRODUCTS", ("no_such_type",))
    device = CudaDevice()
    assert device.cache_bytes == 4096
    found = measure_ceilings(device, nbytes=4000, side=10)
    # The fake clock gives every call a millisecond.
    assert found["bytes_per_s"]["copy"] == pytest.approx(8000 / 1e-3)  # read and written
    assert found["bytes_per_s"]["read"] == pytest.approx(4000 / 1e-3)
    assert found["bytes_per_s"]["upload pinned"] == pytest.approx(4000 / 1e-3)
    assert found["operations_per_s"] == {"float32 on CuPy": pytest.approx(2 * 10**3 / 1e-3)}
    assert list(found["left_out"]) == ["no_such_type"]
    device.forget()


def test_the_gpu_is_held_for_so_many_of_its_cycles(fake_cupy):
    fake_cupy.cuda.Device().attributes["ClockRate"] = 1_980_000  # kHz
    device = CudaDevice()
    device.hold(2e-3)
    assert fake_cupy.held == [3_960_000]
    assert fake_cupy.held[0].dtype == np.int64
    assert not device.reached(device.mark())


def test_a_ceiling_that_cannot_be_measured_leaves_the_others(fake_cupy, monkeypatch):
    monkeypatch.setattr(roofline, "TORCH_PRODUCTS", ())

    def no_memory(nbytes):
        raise MemoryError("no pinned memory")

    fake_cupy.cuda.alloc_pinned_memory = no_memory
    found = measure_ceilings(CudaDevice(), nbytes=4000, side=10)
    assert found["left_out"] == {"upload pinned": "MemoryError: no pinned memory"}
    assert sorted(found["bytes_per_s"]) == ["copy", "read", "upload pageable"]


# ------------------------------------------------------------------------------------- parity


def test_every_model_and_every_replaceable_function_has_inputs():
    assert {f"model {name}" for name in MODELS} <= parity.OPERATION_RUNS.keys()
    estimators = {name for name in gpuclf.__all__ if name.endswith("Classifier")}
    assert estimators <= parity.OPERATION_RUNS.keys()
    assert "softmax_cross_entropy" in SEAMS
    assert SEAMS.keys() <= parity.KERNEL_RUNS.keys()


@pytest.mark.slow
def test_parity_alone_knows_every_replaceable_function():
    """A function becomes known when its module is imported."""
    marked = {
        found
        for path in (ROOT / "gpuclf").rglob("*.py")
        for found in re.findall(r"^@fusable\(.*?\ndef (\w+)", path.read_text(), re.M | re.S)
    }
    code = "from benchmarks import parity; print(*parity.SEAMS); parity.registered('cupy')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == marked


def test_parity_passes_what_is_right_and_finds_what_is_not():
    function = softmax_cross_entropy
    sizes = parity.SMALL_SIZES

    def plus(error):
        def kernel(*args):
            loss, dscores = function.reference(*args)
            return loss, dscores * (1 + error)

        return kernel

    assert parity.check_kernel(function, plus(0.0), np.array, sizes)["passed"]
    wrong = parity.check_kernel(function, plus(1e-5), np.array, sizes)
    assert not wrong["passed"]
    assert min(wrong["error_of_allowed"].values()) > 1  # in float32 too
    declined = parity.check_kernel(function, lambda *_: NotImplemented, np.array, sizes)
    assert declined["message"] == "the kernel declined everything"

    def copy(x):
        return x

    unknown = parity.check_kernel(fusable()(copy), copy, np.array, sizes)
    assert "no inputs for copy" in unknown["message"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.array([1.0, np.nan]), "finite"),
        (np.array([1.0, 2.0], np.float32), "float32"),
        (np.array([1.0]), "instead of"),
    ],
)
def test_parity_refuses_what_cannot_be_compared(found, message):
    right = np.array([1.0, 2.0])
    with pytest.raises(AssertionError, match=message):
        share_of_allowed(found, right, right)
    with pytest.raises(AssertionError, match="whole numbers"):
        share_of_allowed(np.array([1, 2]), np.array([1, 3]), np.array([1, 3]))


def test_an_operation_that_raises_is_recorded_with_the_others(monkeypatch):
    def fail(problem):
        raise ValueError("broken")

    runs = {"fails": fail, "works": lambda p: p.W * 2}
    monkeypatch.setattr(parity, "OPERATION_RUNS", runs)
    found = parity.check_all(np.array, "none", parity.SMALL_SIZES)
    assert found["fails"] == {"passed": False, "message": "ValueError: broken"}
    assert found["works"]["passed"]


# -------------------------------------------------------------------------------------- steps


class LocalWorker:
    """Runs the steps in this process."""

    def __init__(self, settings, log, plan):
        self.context, self.plan, self.closed = steps.Context(settings), plan, False

    def ask(self, step, known, limit_s, advance):
        self.context.known = known
        return steps.run_step(self.context, step, self.plan)

    def close(self):
        self.closed = True


@pytest.fixture
def quick(monkeypatch):
    """Make the dry run small: in one process, without peers, without processes of its own."""
    tiny = steps.Settings.rehearsal

    def rehearsal(**options):
        return replace(tiny(**options), samples=40, runs=3, copied_bytes=4000, matrix_side=8)

    monkeypatch.setattr(steps.Settings, "rehearsal", rehearsal)
    monkeypatch.setattr(shared, "device_peers", lambda device: [])
    monkeypatch.setattr(acceptance, "Worker", LocalWorker)
    monkeypatch.setattr(steps, "rehearse_kernels", lambda: False)
    monkeypatch.setattr(shared.Rehearsed, "settle", lambda self: None)
    monkeypatch.delenv("GPUCLF_REQUIRE_COMPILERS", raising=False)
    done = SimpleNamespace(returncode=0, stdout='{"first_call_s": 1, "implementation": "x"}')
    done.stderr = ""

    def run(command, stdin, **options):
        assert stdin == subprocess.DEVNULL  # and not the pipe that brings requests
        return done

    processes = SimpleNamespace(
        run=run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(steps, "subprocess", processes)  # the module's own is everybody's
    monkeypatch.setitem(steps.STEPS, "gpu tests", lambda context: {"summary": "1 skipped"})


def load(folder):
    return json.loads((folder / acceptance.ACCEPTANCE.record).read_text())


@pytest.mark.nightly
@pytest.mark.slow
def test_the_dry_run_goes_through_every_step(quick, tmp_path, capsys):
    assert acceptance.main(["--out", str(tmp_path / "new"), "--dry-run"]) == 0
    record = load(tmp_path / "new")
    assert next(iter(record)) == "dry_run"
    assert record["dry_run"] is True
    assert record["status"] == "complete"
    assert [step["name"] for step in record["steps"]] == list(steps.STEPS)
    assert {step["status"] for step in record["steps"]} == {"passed"}
    timed = [s["result"] for s in record["steps"] if s["name"].startswith("timings")]
    assert [result["case"]["operation"] for result in timed] == [
        case.operation for case in device_cases(40)
    ]
    for row in (row for result in timed for row in result["rows"]):
        if row["status"] == "timed":
            assert row["precision"] in row["implementation"].lower() + "float32"
            assert row["floor_s"] > 0
            assert row["device_s"]["n"] == len(row["device_s"]["samples"]) > 0
    printed = capsys.readouterr().out
    assert "DRY RUN" in printed
    assert len(printed[printed.index("acceptance (DRY RUN") :].splitlines()) < 60
    assert all(name in printed for name in steps.STEPS)


def test_a_dry_run_never_writes_among_the_results(tmp_path, capsys, monkeypatch):
    for folder in ("benchmarks/results", "benchmarks/results/gpu", "tests/../benchmarks/results"):
        assert acceptance.main(["--out", str(ROOT / folder), "--dry-run"]) == 2
    assert "must not lie under" in capsys.readouterr().out
    link = tmp_path / "link"
    link.symlink_to(ROOT / "benchmarks" / "results")
    assert acceptance.main(["--out", str(link), "--dry-run"]) == 2


def test_without_a_gpu_it_says_why_and_exits_with_3(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(acceptance, "probe_cupy", lambda: CupyProbe(False, "the card is elsewhere"))
    assert acceptance.main(["--out", str(tmp_path / "new")]) == 3
    assert "the card is elsewhere" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_an_unknown_step_is_named(tmp_path, capsys):
    assert acceptance.main(["--out", str(tmp_path), "--dry-run", "--only", "coffee"]) == 2
    assert "no step is called coffee" in capsys.readouterr().out


def test_only_what_is_asked_for_runs(quick, tmp_path):
    assert acceptance.main(["--out", str(tmp_path), "--dry-run", "--only", "ceil*"]) == 0
    statuses = {step["name"]: step["status"] for step in load(tmp_path)["steps"]}
    assert statuses.pop("ceilings") == "passed"
    assert set(statuses.values()) == {"skipped"}


@pytest.mark.nightly
@pytest.mark.slow
def test_timings_without_ceilings_are_judged_by_assumed_ones(quick, tmp_path, monkeypatch):
    def fail(context):
        raise RuntimeError("no page-locked memory")

    monkeypatch.setitem(steps.STEPS, "ceilings", fail)
    only = ["ceilings", "timings: svm"]
    assert acceptance.main(["--out", str(tmp_path), "--dry-run", "--only", *only]) == 1
    found = {step["name"]: step for step in load(tmp_path)["steps"]}
    assert found["ceilings"]["status"] == "failed"
    assert found["timings: svm"]["status"] == "passed"
    result = found["timings: svm"]["result"]
    assert result["assumed"] == ["bytes_per_s of the floor", "operations_per_s of the floor"]
    row = result["rows"][0]
    assert row["floor_s"] == pytest.approx(row["bytes"] / 4.3e12)


def test_of_ceilings_that_are_half_measured_only_the_other_half_is_assumed():
    context = steps.Context(steps.Settings.rehearsal())
    context.known = {"ceilings": {"bytes_per_s": {"copy": 1e12}, "operations_per_s": {}}}
    found, assumed = context.ceilings()
    assert (found["bytes_per_s"], assumed) == ({"copy": 1e12}, ["operations_per_s"])


def test_a_failed_step_is_recorded_and_the_rest_goes_on(quick, tmp_path, monkeypatch, capsys):
    def fail(context):
        raise RuntimeError("an illegal address")

    monkeypatch.setitem(steps.STEPS, "parity", fail)
    wrong = spoiled(lambda loss, dW: (loss + 1, dW))
    monkeypatch.setattr(shared, "device_peers", lambda device: [wrong])
    only = ["parity", "ceilings", "timings: svm", "timings: net step"]
    assert acceptance.main(["--out", str(tmp_path), "--dry-run", "--only", *only]) == 1
    found = {step["name"]: step for step in load(tmp_path)["steps"]}
    assert found["parity"]["message"] == "RuntimeError: an illegal address"
    assert found["ceilings"]["status"] == "passed"
    assert "the wrong one wrong" in found["timings: svm"]["message"]
    assert "WRONG" in capsys.readouterr().out
    # The others of that case were timed.
    assert [row["status"] for row in found["timings: svm"]["result"]["rows"]][:3] == ["timed"] * 3


def test_the_record_is_whole_after_every_step(quick, tmp_path, monkeypatch):
    seen = []

    def look(context):
        seen.append({s["name"]: s["status"] for s in load(tmp_path)["steps"]})

    for name in ("environment", "parity", "ceilings"):
        monkeypatch.setitem(steps.STEPS, name, look)
    only = ["environment", "parity", "ceilings"]
    acceptance.main(["--out", str(tmp_path), "--dry-run", "--only", *only])
    assert [sum(s == "passed" for s in step.values()) for step in seen] == [0, 1, 2]
    # What ends without a word leaves the name of the step.
    assert (seen[1]["ceilings"], seen[1]["parity"]) == ("running", "not reached")
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_a_spent_time_budget_keeps_what_is_done(quick, tmp_path):
    assert acceptance.main(["--out", str(tmp_path), "--dry-run", "--time-budget", "1"]) == 4
    record = load(tmp_path)
    assert record["status"] == "time budget spent"
    assert {step["status"] for step in record["steps"]} == {"not reached"}


@pytest.mark.slow
def test_where_a_compiler_is_required_kernels_are_not_left_out(quick, monkeypatch):
    context = steps.Context(steps.Settings.rehearsal())
    assert steps.run_step(context, "parity")["result"]["kernels"]["message"].startswith("left out")
    monkeypatch.setenv("GPUCLF_REQUIRE_COMPILERS", "1")
    assert steps.run_step(context, "parity")["status"] == "failed"


def test_other_bits_in_other_runs_are_found(quick, monkeypatch):
    rng = np.random.default_rng(0)
    moving = spoiled(lambda loss, dW: (loss + rng.random(), dW), name="gpuclf")
    monkeypatch.setattr(shared, "device_implementations", lambda device: [moving])
    context = steps.Context(steps.Settings.rehearsal())
    context.cases = [tiny_case(), tiny_case(STEPS)]
    answer = steps.run_step(context, "determinism")
    assert answer["status"] == "failed"
    assert "other bits" in answer["message"]
    assert answer["result"][f"{tiny_case().title}, float"]["different_results"] == 3


def gpu_tests_of(tmp_path, monkeypatch, body, other="pass", **options):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_dispatch.py").write_text(
        f"import time, pytest\n@pytest.mark.gpu\ndef test_one(): {body}\n"
        f"@pytest.mark.gpu\ndef test_other(): {other}\n"
    )
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "INTERRUPT_S", 120.0)  # however slow this machine is
    settings = steps.Settings.rehearsal(out=str(tmp_path), **options)
    return steps.run_step(steps.Context(settings), "gpu tests")


@pytest.fixture
def limit_in_the_last_test(tmp_path, monkeypatch):
    """Let the time be up when the last test sleeps, however slowly this machine got there."""

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None and not hasattr(self, "is_late"):
                self.is_late = True
                while not (tmp_path / "asleep").exists() and self.poll() is None:
                    time.sleep(0.01)
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(steps.subprocess, "Popen", Process)
    return f"(open({str(tmp_path / 'asleep')!r}, 'w').close(), time.sleep(60))"


@pytest.mark.slow
def test_failed_gpu_tests_are_named(tmp_path, monkeypatch):
    answer = gpu_tests_of(tmp_path, monkeypatch, "assert 1 == 2")
    assert answer["status"] == "failed"
    assert answer["result"]["tests"] == 2
    (failed,) = answer["result"]["failed"]
    assert "test_one: assert 1 == 2" in failed


@pytest.mark.slow
def test_gpu_tests_that_take_too_long_keep_their_counts(
    tmp_path, monkeypatch, limit_in_the_last_test
):
    answer = gpu_tests_of(tmp_path, monkeypatch, limit_in_the_last_test, tests_limit_s=1.5)
    assert answer["status"] == "failed"
    assert "SIGINT after 1.5 s" in answer["message"]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(("body", "status"), [("pass", "incomplete"), ("assert 0", "failed")])
def test_a_time_out_after_tests_that_passed_is_no_failure(
    tmp_path, monkeypatch, limit_in_the_last_test, body, status
):
    answer = gpu_tests_of(tmp_path, monkeypatch, body, limit_in_the_last_test, tests_limit_s=2.5)
    assert answer["status"] == status
    assert "SIGINT after 2.5 s" in answer["message"]
    assert answer["result"]["tests"] == 1
    assert len(answer["result"]["failed"]) == (status == "failed")


def test_tests_that_prove_kernels_come_first_and_all_others_once():
    files = steps.files_of_tests()
    assert files[: len(steps.KERNEL_TESTS)] == steps.KERNEL_TESTS
    assert sorted(files) == sorted(f"tests/{p.name}" for p in (ROOT / "tests").glob("test_*.py"))


def test_ceilings_and_the_first_timings_come_before_what_may_be_slow():
    order = list(steps.STEPS)
    slow = order.index("compute-sanitizer memcheck")
    assert order.index("ceilings") < order.index("timings: softmax") < slow
    assert order.index("timings: net epoch") < order.index("gpu tests") < slow
    assert [n for n in order if n.startswith("timings")] == [f"timings: {n}" for n in steps.LABELS]
    plan = acceptance.ACCEPTANCE
    assert set(plan.limits_s) <= set(order)
    # With warm caches, and where they can take no time from what is measured.
    assert order[-3:] == ["small run", *(f"compute-sanitizer {t}" for t in steps.SANITIZERS)]
    # Up to what is slow, even if every step takes as long as it may.
    first = order[: order.index("gpu tests")]
    assert sum(plan.limits_s.get(n, plan.limit_s) for n in first) < plan.budget_s == 500


@pytest.mark.parametrize("name", ["timings: svm", "cold starts"])
def test_a_step_answers_before_its_limit_with_what_it_has(quick, monkeypatch, name):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(steps.subprocess, "run", run)
    context = steps.Context(steps.Settings.rehearsal())
    context.known = {"ceilings": CEILINGS}
    context.ends = time.monotonic() + shared.ANSWER_S
    answer = steps.run_step(context, name)
    assert answer["status"] == "incomplete"
    assert answer["message"].startswith("out of time: ")
    assert {row.get("reason", row.get("unavailable")) for row in answer["result"]["rows"]} == {
        "out of time"
    }


@pytest.mark.slow
def test_a_broken_device_keeps_what_was_timed_and_gets_a_new_process(quick, monkeypatch):
    def fail(device):
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(steps, "release", fail)
    context = steps.Context(steps.Settings.rehearsal())
    context.known = {"ceilings": CEILINGS}
    late = failing_after(5, RuntimeError("an illegal address"))
    monkeypatch.setattr(shared, "device_peers", lambda device: [late])
    answer = steps.run_step(context, "timings: svm")  # a peer's failure is not this library's
    assert (answer["status"], answer.get("broken")) == ("incomplete", None)
    late = replace(failing_after(5, RuntimeError("an illegal address")), name="gpuclf late")
    monkeypatch.setattr(shared, "device_peers", lambda device: [late])
    answer = steps.run_step(context, "timings: svm")
    assert (answer["status"], answer.get("broken")) == ("failed", None)  # the device still answers
    monkeypatch.setattr(shared.Rehearsed, "synchronize", fail)
    assert steps.run_step(context, "timings: svm")["broken"] is True
    monkeypatch.undo()
    statuses = [row["status"] for row in answer["result"]["rows"]]
    assert (statuses[0], statuses[-1]) == ("timed", "failed")


@pytest.mark.slow
def test_the_small_run_and_a_cold_start_print_what_they_found(
    quick, cuda_on_cpu, capsys, monkeypatch
):
    context = steps.Context(steps.Settings.rehearsal())
    monkeypatch.setattr(steps, "rehearse_kernels", lambda: True)
    few = dict(list(parity.registered("cupy").items())[:2])  # the rest is compiled in CI's dry run
    monkeypatch.setattr(parity, "registered", lambda library: few)
    steps.small_run(context)
    assert "operations agree" in capsys.readouterr().out
    steps.cold_start(context, "gpuclf uint8")
    row = json.loads(capsys.readouterr().out)
    assert row["first_call_s"] > 0


def test_compute_sanitizer_is_skipped_where_it_is_not_installed(quick, monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda name: "/nowhere/compute-sanitizer")
    context = steps.Context(replace(steps.Settings.rehearsal(), dry_run=False))
    answer = steps.run_step(context, "compute-sanitizer memcheck")
    assert answer["status"] == "skipped"


def test_what_compute_sanitizer_finds_fails_the_step(quick, monkeypatch):
    commands = []

    def found_errors(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=steps.SANITIZER_ERROR, stdout="ERROR SUMMARY", stderr="")

    monkeypatch.setattr(steps.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(steps.subprocess, "run", found_errors)
    context = steps.Context(replace(steps.Settings.rehearsal(), dry_run=False))
    answer = steps.run_step(context, "compute-sanitizer racecheck")
    assert answer["message"] == "racecheck found errors"
    assert commands[0][1:3] == ["--tool", "racecheck"]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_with_a_gpu_other_lines_run_and_they_run_too(fake_cupy, cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(roofline, "TORCH_PRODUCTS", ())
    monkeypatch.setattr(parity, "SIZES", parity.SMALL_SIZES)
    tiny = steps.Settings.rehearsal(runs=2, samples=40, copied_bytes=4000, matrix_side=8)
    context = steps.Context(replace(tiny, dry_run=False))
    context.known = {"ceilings": CEILINGS}
    assert context.inputs.device == "cuda"
    context.cases = [replace(case, rounds=1, calls_a_turn=1) for case in context.cases]
    for name in ("parity", "determinism", "ceilings", "timings: softmax", "timings: net step"):
        answer = steps.run_step(context, name)
        assert answer["status"] == "passed", answer["message"]
    rows = {row["implementation"]: row for row in answer["result"]["rows"]}
    assert rows["gpuclf uint8"]["device_s"]["median"] == pytest.approx(1e-3)  # the fake clock's
    assert rows["gpuclf uint8"]["array_library"] == "cupy"
    for name in ("PyTorch eager", "PyTorch graphed", "JAX jit"):
        assert rows[name]["status"] == "unavailable"
        assert "device" in rows[name]["reason"] or "not installed" in rows[name]["reason"]


# ---------------------------------------------------------------------------------- processes


@pytest.mark.nightly
@pytest.mark.slow
def test_a_process_that_dies_or_hangs_ends_a_step_only(tmp_path):
    log = tmp_path / "log"
    log.touch()
    with closing(acceptance.Worker(steps.Settings.rehearsal(), log, steps.STEPS)) as worker:
        hung = worker.ask("environment", {}, 0.05, print)
        assert hung["status"] == "failed"
        assert "limit of" in hung["message"]
        assert worker._process is None  # after an accident, the next one is new
        missing = worker.ask("no such step", {}, 60, print)
        assert missing["message"] == "KeyError: 'no such step'"
        assert "no such step" in log.read_text()
        said = []
        done = worker.ask("determinism", {}, 60, said.append)
        assert done["status"] == "passed"
        assert len(said) > 1
        assert os.getpgid(worker._process.pid) == worker._process.pid
        os.kill(worker._process.pid, signal.SIGKILL)
        dead = worker.ask("ceilings", {}, 60, print)
        assert "died with code -9" in dead["message"]


@pytest.mark.slow
def test_a_signal_in_the_middle_keeps_what_is_done(tmp_path):
    code = """
import signal, sys
from benchmarks import acceptance

class Worker:
    def __init__(self, settings, log, plan): pass
    def close(self): pass
    def ask(self, step, *_):
        if step != "ceilings":
            signal.pause()
        return {"status": "passed", "seconds": 1.0, "result": {"bytes_per_s": {"copy": 1.0}}}

acceptance.Worker = Worker
acceptance.summary = lambda step: ""
sys.exit(acceptance.main())
"""
    command = [sys.executable, "-c", code, "--out", str(tmp_path), "--dry-run"]
    process = subprocess.Popen(
        [*command, "--only", "ceilings", "timings: net"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        path = tmp_path / acceptance.ACCEPTANCE.record
        while process.poll() is None and not (
            path.exists() and any(s["status"] == "passed" for s in load(tmp_path)["steps"])
        ):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=120)[0].decode()
    finally:
        process.kill()
    record = load(tmp_path)
    assert process.returncode == 128 + signal.SIGTERM
    assert record["status"] == "stopped by SIGTERM"
    found = {step["name"]: step for step in record["steps"]}
    assert found["ceilings"]["result"]["bytes_per_s"]["copy"] > 0
    assert found["timings: net"]["status"] == "not reached"
    assert "stopped by SIGTERM" in printed
