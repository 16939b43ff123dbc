"""The steps of the acceptance: what `python -m benchmarks.acceptance` has done in a process apart.

That process is sent the names of steps and sends back progress and answers. A kernel that breaks
the device's context, or a library that hangs, ends this process only.
"""

import hashlib
import importlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

import gpuclf
from benchmarks import parity
from benchmarks.acceptance_context import (
    ROOT,
    Context,
    Incomplete,
    Settings,
    Skipped,
    Unfit,
    digest,
    poison,
    rehearse_kernels,
    release,
    without_copies,
)
from gpuclf.augment import horizontal_flip
from gpuclf.bench import Implementation, Inputs, Reference, Unavailable, device_cases, run_case
from gpuclf.bench.measure.cases import REG
from gpuclf.bench.measure.devices import HostDevice
from gpuclf.bench.measure.implementations import copied
from gpuclf.bench.measure.roofline import SLACK, measure_ceilings
from gpuclf.devices.backends import to_device
from gpuclf.devices.machine import environment as describe_machine
from gpuclf.kernels.linear_pass import on_gpu as linear_pass
from gpuclf.losses import softmax_cross_entropy
from gpuclf.samples.folding import FoldedSamples

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERROR = 86
# What compute-sanitizer prints at once; where there is nothing, a title and, at the end, a summary.
FOUND = re.compile(r"=========\s+(?!COMPUTE-SANITIZER|\w+ SUMMARY: 0 )\S")
RECORDED_EPOCHS = 3
LEAST_RUNS = 10  # of a call too slow for as many as are asked for
TAIL_CHARACTERS = 1500
# What no test without a GPU can prove comes first.
KERNEL_TESTS = [
    f"tests/test_{name}.py"
    for name in (
        "linear_pass_on_gpu",
        "losses_on_cupy",
        "linear_step_on_cupy",
        "two_layer_step_on_cupy",
        "two_layer_pass_on_cupy",
        "neighbors_on_cupy",
        "uploads",
    )
]
INTERRUPT_S = 4.0  # for pytest's own report, within the step's limit
# Of the linear pass: one reading of the samples, or two, the second backwards. Its default has been
# derived from the bytes that they take; what is timed here decides.
WALKS = {
    walk: partial(linear_pass.linear_objective_on_tensor_cores, walks=(walk,))
    for walk in linear_pass.WALKS
}
# Reaches 0.58 on the real images' test set, which the synthetic ones stand in for: the same steps.
RECIPE = {
    "hidden_size": 512, "max_iter": 12, "batch_size": 256, "learning_rate": 0.05, "reg": 1e-4,
}  # fmt: skip
COLD = ["plain CuPy", "gpuclf uint8", "PyTorch eager", "JAX jit", "PyTorch compiled"]
# A small CPU's ceilings, from calls of microseconds, are no ceilings: a rehearsal only goes through
# the judgement.
SLACK_OF_REHEARSAL = 1e3
SLACK_OF_ASSUMED = 3.0  # another GPU may be faster than what is assumed


# ------------------------------------------------------------------------------------- steps


def environment(context):
    """Machine, GPU, driver, versions, commit, precision of each peer."""
    machine = describe_machine()
    machine["versions"]["gpuclf"] = gpuclf.__version__
    for name in ("triton", "nvidia-cublas", "nvidia-cublas-cu12", "jaxlib", "pytest"):
        with suppress(importlib.metadata.PackageNotFoundError):
            machine["versions"][name] = importlib.metadata.version(name)
    gpu = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"
    changed = _output("git", "status", "--porcelain")
    return {
        "machine": machine,
        "gpu": _output("nvidia-smi", f"--query-gpu={gpu}", "--format=csv,noheader"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "commit_said": context.settings.commit or None,
        "changed_files": None if changed is None else changed.splitlines(),
        "source_sha256": _source_digest(),
        "precision": {
            "CuPy": f"float32; CUPY_TF32={os.environ.get('CUPY_TF32', 'unset')}",
            "PyTorch": _said("torch", lambda torch: torch.get_float32_matmul_precision()),
            "JAX": _said("jax", lambda jax: jax.config.jax_default_matmul_precision),
        },
        "data": f"synthetic images, {context.settings.samples:,} x 3,072 bytes, the size of "
        "CIFAR-10's training set",
    }


def _run(command, **options):
    """Run a command that gets nothing to read, and return what it printed."""
    return subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        **options,
    )  # fmt: skip


def _output(*command):
    try:
        done = _run(command, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _source_digest():
    """Name the code itself: a bare copy has no commit."""
    digest = hashlib.sha256()
    for path in sorted(p for p in ROOT.glob("gpuclf/**/*") if p.suffix in (".py", ".cu", ".cuh")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def _said(module, default_precision):
    try:
        return f"default {default_precision(importlib.import_module(module))!r}, set for each row"
    except ImportError:
        return "not installed"


def gpu_tests(context):
    """Run the tests that need a GPU, in a process of their own."""
    files = ["tests/test_dispatch.py"] if context.settings.dry_run else files_of_tests()
    folder = Path(context.settings.out).resolve()
    report, output = folder / "gpu_tests.xml", folder / "gpu_tests.log"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    # There, other versions may warn of something new; here, results count.
    command += ["-W", "default", "--doctest-continue-on-failure", f"--junitxml={report}", *files]
    limit = min(context.settings.tests_limit_s, context.left_s())
    report.unlink(missing_ok=True)
    with output.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # What is begun in the background may have been told to ignore it.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then writes what it has
            code = f"SIGINT after {limit:.3g} s"
            with suppress(subprocess.TimeoutExpired):
                process.wait(INTERRUPT_S)
            process.kill()
            process.wait()
    tail = output.read_text(errors="replace").strip()[-TAIL_CHARACTERS:]
    last_line = (tail.splitlines() or ["nothing was printed"])[-1]
    found = results_of(report)
    some_ran = found.get("tests", 0) > found.get("skipped", 0)
    if code in (0, 5) and found:  # 5: no test carries the mark
        if not some_ran and not context.settings.dry_run:
            raise Unfit("every test was skipped", found | {"tail": tail})
        return found | {"summary": last_line}
    found["tail"] = tail
    if isinstance(code, str) and some_ran and not found["failed"]:
        raise Incomplete(f"{code}; none of {found['tests']} tests failed until then", found)
    raise Unfit(f"pytest ended with {code}: {last_line}", found)


def results_of(report):
    """Return the counts of pytest's report and what failed; nothing where there is none."""
    if not report.exists():
        return {}
    root = ET.parse(report).getroot()
    counts = root.find("testsuite").attrib
    found = {name: int(counts[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{test.get('classname')}.{test.get('name')}: {problem.get('message', '')[:300]}"
        for test in root.iter("testcase")
        for problem in (*test.findall("failure"), *test.findall("error"))
    ]
    return found | {"failed": failed[:50]}


def files_of_tests():
    """Return the files of tests, what proves kernels first; pytest would sort a folder its way."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return list(dict.fromkeys(KERNEL_TESTS + [str(path.relative_to(ROOT)) for path in found]))


def check_parity(context):
    """Hold every kernel, model and estimator against NumPy in float64."""
    left = {"advance": context.advance, "left_s": context.left_s}
    if not context.settings.dry_run:
        records = parity.check_all(context.put, "cupy", parity.SIZES, **left)
    elif rehearse_kernels():
        records = parity.check_all(context.put, "cupy", parity.SMALL_SIZES, **left)
    else:
        records = parity.check_all(context.put, "none", parity.SMALL_SIZES, **left)
        optional = "GPUCLF_REQUIRE_COMPILERS" not in os.environ
        records["kernels"] = {"passed": optional, "message": "left out: no C++ compiler"}
    failed = [name for name, record in records.items() if not record["passed"]]
    if failed:
        raise Unfit(f"{len(failed)} of {len(records)} differ: {', '.join(failed)}", records)
    if context.left_s() <= 0:
        raise Incomplete(f"out of time after {len(records)}, none of which differ", records)
    return records


def determinism(context):
    """Run everything many times, while there is time, and compare the bits."""
    settings = context.settings
    ours = [i for i in context.implementations() if i.name in ("gpuclf", "gpuclf uint8")]
    found, different = {}, []
    for case in context.cases:
        for implementation in ours:
            if context.left_s() <= 0:
                raise Incomplete(f"out of time after {len(found)} cases", found)
            name = f"{case.title}, {implementation.stored}"
            context.advance(name)
            digests, call, runs = set(), None, 0
            least = 2 if case.is_epoch else LEAST_RUNS
            ends = time.monotonic() + settings.determinism_s / (len(ours) * len(context.cases))
            while runs < settings.runs and (runs < least or time.monotonic() < ends):
                runs += 1
                poison(context.device)
                if call is None or case.is_training:  # which moves what it works on
                    call = implementation.prepare(case, without_copies(context.inputs))
                # The first epoch is launched, the second recorded, the third repeats the record.
                for _ in range(RECORDED_EPOCHS if case.is_epoch else 1):
                    result = call()
                digests.add(digest(result))
            found[name] = {"runs": runs, "different_results": len(digests)}
            found[name]["sha256"] = sorted(digests)[0]
            if len(digests) > 1:
                different.append(name)
    if different:
        raise Unfit(f"other bits in other runs: {', '.join(different)}", found)
    return found


def sanitizer(tool, context):
    """Run the kernels small under compute-sanitizer; in a rehearsal, without it."""
    command = apart(context, "small run")
    if not context.settings.dry_run:
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(program).exists():
            raise Skipped("compute-sanitizer is not installed")
        command = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), *command]
    try:
        done = _run(command, timeout=max(context.left_s(), 0.0))
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace").splitlines()
        found = [line for line in said if FOUND.match(line)]
        if found:
            told = {"tail": "\n".join(said)[-TAIL_CHARACTERS:]}
            raise Unfit(f"{tool} found errors before its time was up: {found[0]}", told) from None
        raise Incomplete(f"out of time: {tool} had found nothing until then") from None
    tail = (done.stdout + done.stderr).strip()[-TAIL_CHARACTERS:]
    if "not supported" in tail:
        raise Skipped(f"compute-sanitizer does not work on this machine: {tail[-200:]}")
    if done.returncode == SANITIZER_ERROR:
        raise Unfit(f"{tool} found errors", {"tail": tail})
    if done.returncode != 0:
        raise Unfit(f"the small run ended with {done.returncode}", {"tail": tail})
    return {"tool": tool, "tail": tail[-300:]}


def warm_up(context):
    """Run the kernels small without a sanitizer, which leaves their binaries on the disk."""
    try:
        done = _run(apart(context, "small run"), timeout=max(context.left_s(), 0.0))
    except subprocess.TimeoutExpired:
        raise Incomplete("out of time: sanitizers will have to compile") from None
    tail = (done.stdout + done.stderr).strip()[-TAIL_CHARACTERS:]
    if done.returncode != 0:
        raise Unfit(f"the small run ended with {done.returncode}", {"tail": tail})
    return {"tail": tail[-300:]}


def small_run(context):
    """Run every kernel and the models at small sizes, each array in memory of its own."""
    if context.settings.dry_run:
        if not rehearse_kernels():
            return
    else:
        context.device.xp.cuda.set_allocator(None)  # a pool would hide what lies out of bounds
    checks = parity.all_checks(context.put, "cupy", parity.SMALL_SIZES)
    chosen = {name: run for name, run in checks.items() if name.startswith(("kernel ", "model "))}
    failed = []
    for name, check in chosen.items():
        try:
            found = check()
        except Exception as error:  # the others are still to be looked at
            traceback.print_exc()
            found = {"passed": False, "message": f"{type(error).__name__}: {error}"}
        if not found["passed"]:
            failed.append(f"{name} ({found.get('message') or found['error_of_allowed']})")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(chosen)} differ: {'; '.join(failed)}")
    print(f"{len(chosen)} operations agree")


def ceilings(context):
    """Measure how fast this machine moves bytes and multiplies."""
    settings = context.settings
    found = measure_ceilings(context.device, settings.copied_bytes, settings.matrix_side)
    context.device.forget()
    return found


def timed(context, case, inputs, precise, implementations):
    """Check and time the implementations of a case; give their memory back."""
    context.advance("float64 reference")
    settings, (ceilings, assumed) = context.settings, context.ceilings()
    slack = SLACK_OF_REHEARSAL if settings.dry_run else SLACK_OF_ASSUMED if assumed else SLACK
    reference = Reference(case, inputs, precise)
    reference.results(case.samples)
    where = context.inputs.device
    try:
        return run_case(
            case,
            inputs,
            implementations,
            devices={"cpu": HostDevice(), where: context.device},
            ceilings={where: ceilings},
            reference=reference,
            advance=context.advance,
            time_budget_s=settings.timing_s,
            prepare_limit_s=settings.prepare_limit_s,
            compile_limit_s=settings.compile_limit_s,
            deadline_s=context.left_s(),
            seed=settings.seed,
            slack=slack,
        )
    finally:
        with suppress(Exception):  # of a broken device; what was timed before counts
            release(context.device)


def judged(context, case, rows, own="gpuclf"):
    """Return what the record keeps of a case, or raise what its rows say of it.

    What others cannot do here is not this library's failure, but a rate above a ceiling is one of
    the timer.
    """
    result = {"case": case.as_dict(), "rows": [row.as_dict() for row in rows]}
    if assumed := context.ceilings()[1]:
        result["assumed"] = [f"{kind} of the floor" for kind in assumed]
    failed = [row for row in rows if row.status in ("wrong", "failed", "rejected")]
    if failed:
        ours = [r for r in failed if r.implementation.startswith(own) or r.status == "rejected"]
        bad = "; ".join(f"{row.implementation} {row.status} ({row.reason})" for row in failed)
        raise (Unfit if ours else Incomplete)(bad, result)
    late = [row.implementation for row in rows if (row.reason or "").endswith("out of time")]
    if late:
        raise Incomplete(f"out of time: {', '.join(late)}", result)
    return result


def timings(label, context):
    """Check and time one case."""
    case = next(case for case in context.cases if case.group == label)
    rows = timed(context, case, context.inputs, context.inputs_float64, context.implementations())
    return judged(context, case, rows)


def linear_walks(context):
    """Check and time the softmax pass with two readings of the samples, and with one."""
    case, inputs, truth_inputs = context.cases[0], context.inputs, context.inputs_float64
    backend = "cupy"
    if context.settings.dry_run:
        if not rehearse_kernels():
            return {"rows": [], "message": "left out: no C++ compiler"}
        X, y = np.ascontiguousarray(context.images[0][:, :96]), context.images[1]
        inputs, truth_inputs = (Inputs(X, y, dtype) for dtype in ("float32", "float64"))
        backend = "numpy"

    def prepare(case, inputs, walk):
        put = partial(to_device, backend=backend)
        batches = itertools.cycle(copied(inputs.bytes_[: case.samples], inputs, put))
        y, W = put(inputs.y[: case.samples]), put(inputs.W)

        def call():
            samples = FoldedSamples(next(batches), int(W.shape[1]), W.dtype)
            loss, dW, _ = walk(W, None, samples, y, None, softmax_cross_entropy, REG)
            return loss, {"W": dW}

        return call

    device = context.inputs.device
    ways = [
        Implementation(f"walk {name}", backend, "uint8", partial(prepare, walk=walk), device=device)
        for name, walk in WALKS.items()
    ]
    rows = timed(context, case, inputs, truth_inputs, ways)
    return judged(context, case, rows, own="walk")


def training(context):
    """Time a whole training of the net, and its test: the recipe that reaches 0.58 on CIFAR-10."""
    X, y = (context.put(array) for array in context.images)
    n_test = len(y) // 5
    recipe = RECIPE | ({"max_iter": 2, "hidden_size": 8} if context.settings.dry_run else {})
    context.advance("compiling")
    rows = []
    for name in ("cold", "warm"):
        net = gpuclf.TwoLayerNetClassifier(augment=horizontal_flip, random_state=0, **recipe)
        began = time.perf_counter()
        net.fit(X, y)
        accuracy = net.score(X[:n_test], y[:n_test])
        row = {"implementation": "gpuclf uint8", "start": name, "accuracy": float(accuracy)}
        rows.append(row | {"fit_and_score_s": time.perf_counter() - began})
    return {"recipe": recipe, "samples": len(y), "scored": n_test, "rows": rows}


def cold_starts(context):
    """Time the first call in a fresh process, with empty caches of compiled kernels."""
    rows = []
    for name in COLD[:2] if context.settings.dry_run else COLD:
        context.advance(name)
        # What a compiler leaves running may still write there.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            of = ("CUPY", "TORCHINDUCTOR", "TRITON")
            caches = os.environ | {f"{library}_CACHE_DIR": folder for library in of}
            caches.pop("CUPY_NVRTC_USE_PCH", None)  # a user has not set it
            command, left_s = apart(context, "cold start", name), max(context.left_s(), 0.0)
            try:
                done = _run(command, env=caches, timeout=left_s)
            except subprocess.TimeoutExpired:
                rows.append({"implementation": name, "unavailable": "out of time"})
                continue
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            rows.append(json.loads(lines[-1]))
        else:
            rows.append({"implementation": name, "failed": done.stderr.strip()[-300:]})
    failed = [row["implementation"] for row in rows if "failed" in row]
    if failed:
        raise Unfit(f"did not start: {', '.join(failed)}", {"rows": rows})
    late = [row["implementation"] for row in rows if row.get("unavailable") == "out of time"]
    if late:
        raise Incomplete(f"out of time: {', '.join(late)}", {"rows": rows})
    return {"rows": rows}


def cold_start(context, name):
    """Print what the first calls of an implementation take in this process."""
    inputs, case = context.inputs, context.cases[0]
    _ = inputs.floats, inputs.bytes_
    row = {"implementation": name, "case": case.title}
    (implementation,) = [i for i in context.implementations() if i.name == name]
    began = time.perf_counter()
    try:
        call = implementation.prepare(case, without_copies(inputs))
        row["import_and_upload_s"] = time.perf_counter() - began
        for which in ("first_call_s", "second_call_s"):
            began = time.perf_counter()
            digest(call())  # brings the result to the host
            row[which] = time.perf_counter() - began
    except Unavailable as reason:
        row["unavailable"] = str(reason)
    print(json.dumps(row))


LABELS = [case.group for case in device_cases(50_000)]
TIMINGS = {f"timings: {label}": partial(timings, label) for label in LABELS}
FIRST = [f"timings: {label}" for label in LABELS[:3]]
STEPS = {
    "environment": environment,
    # The figures that decide come before what may be slow; each is checked before it is timed.
    "ceilings": ceilings,
    **{name: TIMINGS.pop(name) for name in FIRST},
    "walks of the linear pass": linear_walks,
    "training": training,
    "gpu tests": gpu_tests,
    "parity": check_parity,
    **TIMINGS,
    "determinism": determinism,
    "cold starts": cold_starts,
    # What may take all the time that is left: last, with what is compiled on the disk.
    "small run": warm_up,
    **{f"compute-sanitizer {tool}": partial(sanitizer, tool) for tool in SANITIZERS},
}


def run_step(context, name, steps=None):
    """Run a step, of STEPS or others; return status, message, result: an answer, come what may."""
    began = time.perf_counter()
    answer = {"status": "passed", "message": None, "result": None}
    try:
        answer["result"] = (STEPS if steps is None else steps)[name](context)
    except Skipped as reason:
        answer |= {"status": "skipped", "message": str(reason)}
    except Incomplete as found:
        answer |= {"status": "incomplete", "message": str(found), "result": found.result}
    except Unfit as found:
        answer |= {"status": "failed", "message": str(found), "result": found.result}
    except Exception as error:
        traceback.print_exc()
        answer |= {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    # What merely differs does not end the process: a new one takes ten seconds to begin.
    if answer["status"] == "failed" and context.device_is_lost():
        answer["broken"] = True
    return answer | {"seconds": round(time.perf_counter() - began, 3)}


def serve(settings, pipe, log, steps=None):
    """Answer requests until this process is ended, with all that it has started."""
    os.setsid()  # as one group
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)  # what libraries print
    os.dup2(output, 2)
    context = Context(settings, pipe.send)
    while True:
        name, context.known, context.ends = pipe.recv()
        pipe.send(run_step(context, name, steps))


FRESH = {"small run": small_run, "cold start": cold_start}


def apart(context, what, *arguments):
    """Return the command that does something of `FRESH` in a new process."""
    settings = json.dumps(asdict(context.settings))
    return [sys.executable, "-m", "benchmarks.acceptance_steps", what, settings, *arguments]


if __name__ == "__main__":
    FRESH[sys.argv[1]](Context(Settings(**json.loads(sys.argv[2]))), *sys.argv[3:])
