"""The first minutes with a GPU, and that no step of either plan costs another."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.machine_code import numba_is_usable

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the benchmarks are not installed

from benchmarks import acceptance, parity
from benchmarks import acceptance_first_contact as contact
from benchmarks import acceptance_steps as steps

PLANS = {"acceptance": acceptance.ACCEPTANCE, "contact": acceptance.CONTACT}


def small_context(**options):
    said = []
    context = steps.Context(steps.Settings.rehearsal(samples=64, **options), said.append)
    context.said = said
    return context


class LocalWorker:
    """Runs the steps in this process; those named die with it."""

    def __init__(self, plan, deadly=()):
        self.plan, self.deadly, self.context = plan, deadly, small_context()
        self.asked = []

    def ask(self, step, known, limit_s, advance):
        self.asked.append((step, limit_s))
        self.context.known = known
        return steps.run_step(self.context, step, self.plan.steps)

    def close(self):
        pass


def failing(context):
    raise RuntimeError("an illegal address")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_step_that_fails_loses_only_itself(tmp_path, plan):
    for name in plan.steps:
        passing = dict.fromkeys(plan.steps, lambda context: None) | {name: failing}
        one = replace(plan, steps=passing)
        settings = steps.Settings.rehearsal(out=str(tmp_path))
        record, code = acceptance.run(one, settings, tmp_path, LocalWorker(one), ["*"])
        found = {step["name"]: step["status"] for step in record["steps"]}
        assert found.pop(name) == "failed"
        assert set(found.values()) == {"passed"}
        assert code == acceptance.FAILED
        assert json.loads((tmp_path / plan.record).read_text())["status"] == "complete"


def test_memcheck_has_what_is_left_of_150_seconds(tmp_path, monkeypatch):
    plan = acceptance.CONTACT
    assert plan.budget_s == 75
    now = [0.0]

    class Slow(LocalWorker):
        def ask(self, step, known, limit_s, advance):
            now[0] += min(limit_s, 30.0)
            self.asked.append((step, limit_s))
            return {"status": "passed", "seconds": 30.0}

    monkeypatch.setattr(acceptance, "time", SimpleNamespace(monotonic=lambda: now[0]))
    settings = replace(steps.Settings(), out=str(tmp_path))
    worker = Slow(plan)
    record, code = acceptance.run(plan, settings, tmp_path, worker, ["*"])
    limits = dict(worker.asked)
    assert limits["compute-sanitizer memcheck"] == 150 - 75
    assert sum(min(limit, 30) for limit in [*limits.values()][:-1]) == 75
    assert code == acceptance.TIME_SPENT
    assert {step["status"] for step in record["steps"]} == {"passed", "not reached"}


def test_a_kernel_is_named_before_it_is_waited_for(cuda_on_cpu, capsys):
    context, waits = small_context(), []
    context.device.synchronize = lambda: waits.append(len(cuda_on_cpu.launches))
    scores, y = np.zeros((4, 3), np.float32), np.zeros(4, int)
    from gpuclf.kernels.losses.on_gpu import fused_softmax_cross_entropy

    with contact.named_launches(context) as launched:
        for _ in range(2):
            fused_softmax_cross_entropy(scores, y)
    assert waits == [1, 2, 3, 4]
    names = [what.split()[2] for what in context.said]
    assert names == ["softmax_cross_entropy", "add_partials"]  # each once, to who asked
    assert capsys.readouterr().out.count("launch of add_partials (losses.cu)") == 2  # in the log
    assert {name for _, name, _ in launched} == set(names)
    assert cuda_modules.build.__self__ is cuda_on_cpu  # as it was


def test_recorded_launches_are_not_waited_for(cuda_on_cpu):
    context, waits = small_context(), []
    context.device.synchronize = lambda: waits.append(None)
    x, sums = np.ones(3), np.zeros(1)
    constants = {"REAL": "float32", "LABEL": "int64", "LANES": 4, "THREADS": 256}

    def queue():
        arguments = x, sums, 3, np.float64(1)
        cuda_modules.launch("losses.cu", constants, "add_partials", 1, 32, *arguments)

    with contact.named_launches(context), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_modules.cupy_device, "cuda_graph", lambda like, queue: queue())
        patch.setattr(cuda_modules.arrays, "library_name", lambda x: "cupy")
        cuda_modules.recorded(x, queue)
    assert (sums[0], waits) == (3, [])
    assert len(context.said) == 1


def test_a_kernel_that_differs_is_told_with_its_name(monkeypatch):
    monkeypatch.setattr(contact, "rehearse_kernels", lambda: True)
    check = {"passed": False, "error_of_allowed": {"float32": 7.0}}
    monkeypatch.setattr(parity, "check_kernel", lambda *_: check)
    answer = steps.run_step(small_context(), "kernels: two_layer_pass", contact.FIRST_CONTACT)
    assert (answer["status"], answer["message"]) == ("failed", "it differs from NumPy")
    assert answer["result"]["check"] == check


@pytest.mark.slow
def test_every_kernel_of_a_gpu_with_tensor_cores_is_launched_small(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(contact, "rehearse_kernels", lambda: True)
    launched = set()
    for name in contact.FIRST_CONTACT:
        if name.startswith("kernels: "):
            answer = steps.run_step(small_context(), name, contact.FIRST_CONTACT)
            assert answer["status"] == "passed", answer
            launched |= set(answer["result"]["launched"])
    declared = re.compile(r"__global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\((?!.*bounds)")
    every = {
        f"{path.name}: {name}"
        for path in cuda_modules.FOLDER.rglob("*.cu")
        for name in declared.findall(path.read_text())
    }
    assert len(every) > 20
    assert every - launched == {"neighbors.cu: squared_distances"}  # for others


@pytest.mark.parametrize(
    "wrong", [lambda X, *_: (np.float64(1), np.zeros((96, 10), np.float32), None)]
)
def test_a_pass_that_differs_is_told_and_the_other_walk_is_still_tried(monkeypatch, wrong):
    monkeypatch.setattr(contact, "rehearse_kernels", lambda: True)
    monkeypatch.setattr(contact, "WALKS", {"wrong": wrong, "declines": lambda *_: NotImplemented})
    answer = steps.run_step(small_context(), "full passes", contact.FIRST_CONTACT)
    assert answer["status"] == "failed"
    assert "wrong: 1 results" in answer["message"]
    assert "declines declined" in answer["message"]
    assert answer["result"]["wrong"]["of_allowed"] > 1


def test_epochs_that_cannot_be_recorded_are_told(monkeypatch):
    class Epochs:
        is_recorded = True

        def __call__(self, order, rates):
            return np.zeros(len(rates))

    context = small_context()
    context.settings = replace(context.settings, dry_run=False)
    context.put, context.device = np.array, SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(contact, "pixels_of", lambda *_: (np.zeros((9, 96), "uint8"), np.zeros(9)))
    monkeypatch.setattr(parity, "imported", lambda name: lambda *_, **__: Epochs())
    for Epochs.is_recorded, status in ((True, "passed"), (False, "failed")):
        answer = steps.run_step(context, "recorded epochs", contact.FIRST_CONTACT)
        assert answer["status"] == status, answer
    assert "not recorded" in answer["message"]
    assert answer["result"]["net"] == {"different_results": 1, "finite": True, "recorded": False}


def test_a_process_that_does_not_end_is_left_behind(tmp_path, monkeypatch):
    waits = []
    worker = acceptance.Worker(small_context().settings, tmp_path / "log", {})
    worker._pipe = SimpleNamespace(close=lambda: waits.append("closed"))
    worker._process = SimpleNamespace(
        pid=0, kill=lambda: None, exitcode=None, join=lambda timeout=None: waits.append(timeout)
    )
    monkeypatch.setattr(acceptance.os, "killpg", lambda *_: None)
    assert worker.close() is None
    assert waits == [acceptance.END_S, "closed"]


def test_another_run_keeps_the_record_and_the_log_of_the_last(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(acceptance, "Worker", lambda settings, log, _: LocalWorker(plan))
    plan, results = (
        replace(acceptance.CONTACT, steps={"look": lambda context: results.pop()}),
        [2, 1],
    )
    monkeypatch.setattr(acceptance, "CONTACT", plan)
    command = ["--out", str(tmp_path), "--dry-run", "--first-contact"]
    found = []
    for name in ("first_contact", "first_contact_before"):
        assert acceptance.main(command) == 0
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["steps"][0]["result"])
        (tmp_path / "first_contact.log").write_text("printed")
    assert found == [1, 1]
    assert (tmp_path / "first_contact_before.log").read_text() == "printed"
    assert "first_contact.json" in capsys.readouterr().out


def test_without_a_compiler_a_rehearsal_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr(contact, "rehearse_kernels", lambda: False)
    names = [name for name in contact.FIRST_CONTACT if name.startswith("kernels: ")]
    assert len(names) > 5
    for name in (*names, "full passes", "recorded epochs", "nearest neighbours"):
        answer = steps.run_step(small_context(), name, contact.FIRST_CONTACT)
        assert answer["status"] == "passed"
        assert "no C++ compiler" in answer["result"]["message"]
        assert acceptance.summary({"name": name, "result": answer["result"]})


def test_the_small_run_goes_on_after_an_operation_that_raises(monkeypatch, capsys):
    done = []
    checks = {
        "kernel raises": lambda: failing(None),
        "kernel differs": lambda: {"passed": False, "error_of_allowed": {"float32": 7.0}},
        "model works": lambda: done.append(1) or {"passed": True},
        "k_neighbors": lambda: failing(None),  # no kernel and no model: left out
    }
    monkeypatch.setattr(steps, "rehearse_kernels", lambda: True)
    monkeypatch.setattr(parity, "all_checks", lambda *_: checks)
    with pytest.raises(SystemExit) as ended:
        steps.small_run(small_context())
    assert done == [1]
    assert "2 of 3 differ: kernel raises (RuntimeError: an illegal address)" in str(ended.value)
    assert "kernel differs ({'float32': 7.0})" in str(ended.value)


def test_sanitizers_come_after_a_plain_run_that_fills_the_caches(monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout="9 operations agree", stderr="")

    monkeypatch.setattr(steps, "_run", run)
    monkeypatch.setattr(steps.shutil, "which", lambda name: sys.executable)
    context = steps.Context(steps.Settings())
    for name in ("small run", "compute-sanitizer memcheck"):
        assert steps.run_step(context, name)["status"] == "passed"
    plain, checked = commands
    assert checked[-len(plain) :] == plain  # the same, under the sanitizer


HEAD = "========= COMPUTE-SANITIZER\n"
READ, HAZARD = (
    "========= Invalid __global__ read of size 4",
    "========= Error: Potential RAW hazard",
)


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (None, None),
        (HEAD + "9 operations agree\n", None),
        (HEAD + "========= ERROR SUMMARY: 0 errors\n", None),
        (f"{HEAD}{READ}\n=========     at walk_tiles", READ),
        (f"{HEAD}{HAZARD}\n", HAZARD),
        (f"{HEAD}========= ERROR SUMMARY: 10 errors\n", "ERROR SUMMARY: 10 errors"),
    ],
)
def test_what_a_sanitizer_found_before_its_time_was_up_counts(monkeypatch, printed, found):
    def late(command, timeout):
        raise subprocess.TimeoutExpired(command, timeout, printed and printed.encode())

    monkeypatch.setattr(steps.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(steps, "_run", late)
    context = steps.Context(steps.Settings())
    context.device = SimpleNamespace(synchronize=lambda: None)
    answer = steps.run_step(context, "compute-sanitizer memcheck")
    assert answer["status"] == ("failed" if found else "incomplete")
    if found:
        assert found in answer["message"]
        assert answer["result"]["tail"] == printed.rstrip("\n")


@pytest.mark.slow
def test_a_worker_says_what_it_was_at_and_compiles_for_the_gpu_alone(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.touch()
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    settings = steps.Settings.rehearsal(out=str(tmp_path))
    with closing(acceptance.Worker(settings, log, {"dies": die, "asks": environment})) as worker:
        found = worker.ask("dies", {}, 600, lambda what: None)
        assert "it was at: launch of nothing" in found["message"]
        found = worker.ask("asks", {}, 600, lambda what: None)["result"]
        assert found == ["1", str(tmp_path / "kernels"), False]
    assert "CUPY_NVRTC_USE_PCH" not in os.environ


def die(context):
    context.advance("launch of nothing")
    os._exit(3)


def environment(context):
    of_cupy = [os.environ[name] for name in ("CUPY_NVRTC_USE_PCH", "CUPY_CACHE_DIR")]
    return [*of_cupy, numba_is_usable()]
