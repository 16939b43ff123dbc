"""Ctrl-C and SIGTERM: never swallowed, what is finished is kept and marked, one line says so."""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_signals
from rich.progress import Progress

import gpuclf.cli
from gpuclf import interrupts
from gpuclf.devices.cupy import CupyProbe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def interruptible():
    """Hear SIGINT, which a shell has ignored by what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(block):
    """Return the exit code of a block that hears signals."""
    with pytest.raises(SystemExit) as found, interrupts.heard():
        block()
    return found.value.code


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_with_its_code_in_a_line(capfd, signum):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert ended(lambda: signal.raise_signal(signum)) == 128 + signum
    assert capfd.readouterr().err == "interrupted before anything was done\n"
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, BaseException])
def test_a_signal_that_somebody_swallows_is_raised_again(error):
    reached = []

    def swallow():
        try:
            signal.raise_signal(signal.SIGINT)
        except error:
            reached.append("swallowed")
        interrupts.check()
        reached.append("went on")

    assert ended(swallow) == 130
    assert reached == ["swallowed"]


@pytest.mark.parametrize("error", [ImportError("half"), SystemError(), SystemExit(1), SystemExit()])
def test_whatever_an_interrupted_command_ends_with_it_is_interrupted(error, capfd):
    def fail():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error from None

    assert ended(fail) == 143
    assert capfd.readouterr().err.count("\n") == 1


def test_without_a_signal_all_is_as_ever():
    with interrupts.heard():
        pass
    with pytest.raises(ZeroDivisionError), interrupts.heard():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        raise KeyboardInterrupt
    interrupts.check()
    assert interrupts.received() is None


def test_a_signal_in_a_finalizer_is_not_lost_and_says_nothing(capfd):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def finalize():
        Finalized()
        gc.collect()

    assert ended(finalize) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_other_errors_in_finalizers_are_shown_as_ever(capfd, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    with interrupts.heard():
        sys.unraisablehook(SimpleNamespace(exc_value=ValueError()))
        sys.unraisablehook(SimpleNamespace(exc_value=KeyboardInterrupt()))  # without a signal
    assert len(shown) == 2


def test_a_signal_waits_for_the_end_of_what_must_not_be_broken_off():
    reached = []

    def write():
        with interrupts.deferred():
            with interrupts.deferred():
                signal.raise_signal(signal.SIGINT)
            reached.append("written")
        reached.append("went on")

    assert ended(write) == 130
    assert reached == ["written"]


@pytest.mark.parametrize(("later", "killed"), [(0.1, []), (10.0, [signal.SIGINT])])
def test_asked_for_again_while_results_are_written_it_ends_at_once(monkeypatch, later, killed):
    now, kills, handlers = [0.0], [], []
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interrupts.os, "kill", lambda pid, signum: kills.append(signum))

    def write():
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            now[0] += later
            signal.raise_signal(signal.SIGINT)
            handlers.append(signal.getsignal(signal.SIGINT))

    assert ended(write) == 130
    assert kills == killed
    assert (handlers == [signal.SIG_DFL]) is bool(killed)


@pytest.mark.parametrize("end", [None, SystemExit(0), ZeroDivisionError()])
def test_a_signal_that_comes_while_handlers_go_is_not_lost(monkeypatch, capfd, end):
    restored, set_handler = [], signal.signal

    def interrupted(signum, handler):
        if handler is not interrupts._handle and not restored:
            restored.append(signum)
            signal.raise_signal(signum)
        return set_handler(signum, handler)

    def work():
        if end is not None:
            raise end

    monkeypatch.setattr(interrupts.signal, "signal", interrupted)
    assert ended(work) == 130
    assert restored == [signal.SIGINT]
    assert capfd.readouterr().err == "interrupted when all was done\n"


def test_what_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or behind a shell's `&`
    try:
        with interrupts.heard():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


# --------------------------------------------------------------------------------- commands


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run a command on few samples; return exit code, standard error and the JSON."""
    monkeypatch.setattr("gpuclf.devices.cupy.probe_cupy", lambda: CupyProbe(False, "no CuPy"))
    monkeypatch.chdir(tmp_path)
    random_signals.make_data(tmp_path)

    def run(*arguments):
        every = [*arguments, *random_signals.DATA, "--json", "out.json"]
        monkeypatch.setattr(sys, "argv", ["gpuclf", *every])
        with pytest.raises(SystemExit) as found:
            gpuclf.cli.main()
        err = capfd.readouterr().err
        assert "Traceback" not in err
        assert err.count("interrupted") == 1
        path = Path("out.json")
        return found.value.code, err, json.loads(path.read_text()) if path.exists() else None

    return run


def signal_at(monkeypatch, where, when, signum, swallow=False):
    """Send a signal at the n-th call of a function, and perhaps let nobody see it."""
    owner, _, name = where.rpartition(".")
    module = sys.modules.get(owner) or sys.modules[owner.rpartition(".")[0]]
    owner = module if owner in sys.modules else getattr(module, owner.rpartition(".")[2])
    function, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(name)
        if len(calls) == when:
            try:
                signal.raise_signal(signum)
            except KeyboardInterrupt:
                if not swallow:
                    raise
        return function(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("signum", SIGNALS)
def test_train_keeps_the_epochs_that_are_finished(command, monkeypatch, signum, swallow):
    signal_at(monkeypatch, "gpuclf.cli.following.Log.write_epoch", 3, signum, swallow)
    code, err, found = command("train", "softmax", "--epochs", "9")
    assert code == 128 + signum
    assert "out.json has what was finished, marked as incomplete" in " ".join(err.split())
    assert found["incomplete"] is True
    assert found["epochs"] in (3, 4)  # of the callback that came next
    assert len(found["val_accuracy_history"]) == found["epochs"]
    assert found["model"] == "softmax"
    assert found["settings"]["max_iter"] == 9
    assert found["environment"]["versions"]
    assert "test_accuracy" not in found


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("signum", SIGNALS)
def test_search_keeps_the_candidates_that_are_finished(command, monkeypatch, signum, swallow):
    signal_at(monkeypatch, "gpuclf.cli.search._Leaders._left", 9, signum, swallow)
    code, _, found = command("search", "softmax", "--rounds", "2", "--candidates", "3")
    assert code == 128 + signum
    assert found["incomplete"] is True
    assert 3 <= len(found["results"]) <= 6
    accuracies = [row["val_accuracy"] for row in found["results"]]
    best = found["results"][int(np.argmax(accuracies))]
    assert found["best_params"] == best["params"]
    assert found["space"]
    assert found["dataset"]["train_samples"]


def test_search_interrupted_in_its_last_training_keeps_the_search(command, monkeypatch):
    signal_at(monkeypatch, "gpuclf.cli.output._histories", 2, signal.SIGINT)
    code, _, found = command("search", "softmax", "--rounds", "1", "--candidates", "2")
    assert code == 130
    assert len(found["results"]) == 2
    assert found["epochs"] == 1
    assert found["incomplete"] is True


def test_without_a_result_an_earlier_file_is_left_alone(command, monkeypatch):
    signal_at(monkeypatch, "gpuclf.cli.output.load", 1, signal.SIGINT)
    Path("out.json").write_text('{"of": "before"}')
    code, err, found = command("search", "softmax")
    assert code == 130
    assert "nothing was finished, and nothing is written" in err
    assert found == {"of": "before"}


def test_search_before_its_first_candidate_keeps_what_it_was_asked(command, monkeypatch):
    signal_at(monkeypatch, "gpuclf.cli.output.load", 1, signal.SIGINT)
    code, err, found = command("search", "softmax")
    assert code == 130
    assert "nothing was finished" in err
    assert (found["incomplete"], found["results"]) == (True, [])


def test_a_signal_while_the_result_is_written_comes_after_it(command, monkeypatch):
    signal_at(monkeypatch, "gpuclf.cli.output.write_json", 1, signal.SIGTERM)
    code, err, found = command("train", "softmax", "--epochs", "1")
    assert code == 143
    assert "when all was done" in err
    assert "incomplete" not in found
    assert found["test_accuracy"] >= 0


def test_a_signal_swallowed_to_the_end_ends_with_its_code(command, monkeypatch):
    signal_at(monkeypatch, "gpuclf.cli.output.load_for", 1, signal.SIGTERM, swallow=True)
    monkeypatch.setattr("gpuclf.cli.output._Progress.update", Progress.update)
    code, err, found = command("train", "softmax", "--epochs", "1")
    assert code == 143
    assert "when all was done" in err
    assert found["test_accuracy"] >= 0


# ---------------------------------------------------------------------------- random moments


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", random_signals.COMMANDS)
def test_signals_at_random_moments(name):
    *_, outcomes = random_signals.run(name, 8, seed=1)
    assert not [outcome for outcome in outcomes if outcome.startswith("WRONG")], outcomes
