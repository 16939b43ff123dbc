"""What the command line writes: looked at before the work, each by itself, whole or not at all."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import gpuclf.cli
from gpuclf import files
from gpuclf.bench import Row
from gpuclf.bench.report.table import print_rows
from gpuclf.cli import output
from gpuclf.cli.following import Log
from gpuclf.cli.screen import Screen
from gpuclf.devices.cupy import CupyProbe

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
TRAIN = ("train", "softmax", "--data", "synthetic", "--backend", "numpy")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let `gpuclf info` find nothing, soon; loading data is too late for a refusal."""
    monkeypatch.setattr(
        "gpuclf.devices.cupy.probe_cupy", lambda: CupyProbe(False, "no CuPy in tests")
    )

    def load(*_):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("gpuclf.datasets.load_dataset", load)


@pytest.fixture
def main(monkeypatch, capfd):
    """Run the command line; return its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpuclf", *map(str, arguments)])
        try:
            gpuclf.cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.filterwarnings("always:SGD stopped at max_iter")
def test_warnings_are_a_line_each(main, tmp_path):
    np.savez(tmp_path / "few.npz", X=np.eye(30), y=np.arange(30) % 3)
    code, out, err = main("train", "softmax", "--data", tmp_path / "few.npz", "--epochs", 2)
    assert code == 0, err
    assert "warning: SGD stopped at max_iter=2" in err
    assert "classifier.fit" not in out + err
    assert "ConvergenceWarning" not in out + err


# ----------------------------------------------------------------------------- before the work


def folder_in_place_of_a_file(folder):
    (folder / "x.png").mkdir()
    return folder / "x.png"


def file_in_place_of_a_folder(folder):
    (folder / "file").touch()
    return folder / "file" / "x.png"


def a_name_too_long(folder):
    return folder / ("n" * 246 + ".png")


def a_name_too_long_for_any(folder):
    return folder / ("n" * 300 + ".png")


def a_folder_too_long(folder):
    return folder / ("n" * 300) / "x.png"


def links_in_a_circle(folder):
    (folder / "x.png").symlink_to(folder / "y.png")
    (folder / "y.png").symlink_to(folder / "x.png")
    return folder / "x.png"


def a_folder_of_the_system(folder):
    return Path("/proc/x.png")


@pytest.mark.essential_cases(5)
@posix
@pytest.mark.parametrize("option", ["--json", "--html", "--markdown", "--plot"])
@pytest.mark.parametrize(
    "make",
    [
        folder_in_place_of_a_file,
        file_in_place_of_a_folder,
        a_name_too_long,
        a_name_too_long_for_any,
        a_folder_too_long,
        links_in_a_circle,
        pytest.param(
            a_folder_of_the_system,
            marks=pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc"),
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(main, tmp_path, option, make):
    if option == "--plot":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = make(tmp_path)
    before = names(tmp_path)
    command = {"--json": TRAIN, "--plot": ("search", "softmax")}.get(option, ("bench",))
    code, _, err = main(*command, option, path)
    assert code in (1, 2)
    assert "rror" in err
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--json", "x"), ("--html", "x")),
        (("--json", "x"), ("--markdown", "./x")),
        (("--json", "new/../x"), ("--html", "x")),
        (("--html", "link"), ("--markdown", "x")),
        (("--json", "-"), ("--html", "-")),
        (("--json", "-"), ("--html", "/dev/stdout")),
    ],
)
@posix
def test_the_same_file_for_two_outputs_is_refused(main, tmp_path, monkeypatch, one, other):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("x")
    code, _, err = main("bench", *one, *other)
    assert code == 1
    assert "name the same file" in err
    assert names(tmp_path) == ["link"]


@posix
def test_two_outputs_may_go_nowhere():
    output.prepare(Path(os.devnull), html=Path(os.devnull))


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_refused(main, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = main("info", "--json", tmp_path / "x.json")
    assert code == 1
    assert "cannot be written" in err


def test_a_file_that_may_not_be_written_is_refused(main, tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("before")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    code, _, _ = main("info", "--json", tmp_path / "x.json")
    assert code in (1, 2)
    assert (tmp_path / "x.json").read_text() == "before"


# ------------------------------------------------------------------------ standard output, pipes


def test_json_on_standard_output_is_alone_there(main):
    code, out, err = main("info", "--json", "-")
    assert code == 0
    assert json.loads(out)["gpu"]["reason"] == "no CuPy in tests"
    assert "numpy" in err
    code, out, _ = main("info")  # the next one is as ever
    assert code == 0
    assert "numpy" in out


def in_a_shell(command, folder, **environment):
    command = command.replace("gpuclf ", f"{sys.executable} -m gpuclf ")
    root = str(Path(gpuclf.__file__).parents[1])
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@posix
@pytest.mark.slow
def test_outputs_of_a_process(tmp_path):
    """The file that lines go to, one that is closed, a full one, a pipe: the JSON is written."""
    done = in_a_shell("gpuclf info --json out > out", tmp_path)
    assert (done.returncode, done.stderr.count("numpy")) == (0, 1)
    assert json.loads((tmp_path / "out").read_text())["versions"]
    done = in_a_shell("set -o pipefail; gpuclf info --json a | true", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = in_a_shell("gpuclf info --json b >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if Path("/dev/full").exists():
        done = in_a_shell("gpuclf info --json c > /dev/full", tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: what is said could not be written: ")
        assert len(done.stderr.splitlines()) == 1
        assert json.loads((tmp_path / "c").read_text())["versions"]
    done = in_a_shell("gpuclf info --json >(cat > d) > said; sleep 1", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in "abd":
        assert json.loads((tmp_path / name).read_text())["versions"], name


@posix
@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437"])
def test_help_in_an_encoding_that_lacks_letters(tmp_path, encoding):
    done = in_a_shell("gpuclf bench --help", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")


class Stream(io.TextIOWrapper):
    """A stream of an encoding, over bytes that can be looked at."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding)

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def made_up_row(name, seconds):
    facts = dict.fromkeys(
        ("group", "operation", "stored", "dtype", "precision"), "softmax"
    ) | dict.fromkeys(
        ("samples", "measured_samples", "classes", "models", "bytes", "operations"), 1
    )
    times = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds}
    return Row(
        "a case", implementation=name, array_library="numpy", device="cpu", extrapolated=False,
        hidden_units=None, uploads=False, calls_a_turn=1, **facts, **times,
    )  # fmt: skip


@pytest.mark.parametrize(("encoding", "bar"), [("latin-1", "#"), ("ascii", "#"), ("utf-8", "█")])
def test_bars_are_plain_where_the_encoding_lacks_them(monkeypatch, encoding, bar):
    monkeypatch.setattr(sys, "stdout", Stream(encoding))
    screen = Console(file=Screen(), width=100)
    print_rows([made_up_row("fast", 1.0), made_up_row("slow µ█…", 9.0)], screen)
    text = sys.stdout.text()
    assert bar * 10 in text
    assert ("█" in text) is (encoding == "utf-8")


class Failing(io.StringIO):
    """A stream that fails after some characters."""

    def __init__(self, error, after=0):
        super().__init__()
        self._error, self._left = error, after

    def write(self, text):
        self._left -= len(text)
        if self._left < 0:
            raise self._error
        return super().write(text)


@pytest.mark.parametrize("after", [0, 300])
@pytest.mark.parametrize(
    ("error", "code"), [(BrokenPipeError(), 0), (OSError(28, "No space left"), 1)]
)
def test_the_json_is_written_whatever_becomes_of_standard_output(
    main, monkeypatch, tmp_path, error, code, after
):
    stream = Failing(error, after)
    monkeypatch.setattr(sys, "stdout", stream)
    found, _, err = main("info", "--json", tmp_path / "x.json")
    assert found == code
    assert json.loads((tmp_path / "x.json").read_text())["versions"]
    assert err.count("No space left") == code


# ------------------------------------------------------------------------------ each by itself


def test_an_output_that_fails_loses_only_itself(main, monkeypatch, tmp_path):
    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpuclf.cli.output.write_json", fail)
    code, out, err = main("info", "--json", tmp_path / "x.json")
    assert code == 1
    assert "numpy" in out  # printed all the same
    assert "could not be written: [Errno 28] No space left" in " ".join(err.split())
    assert names(tmp_path) == []


def test_the_second_output_is_written_where_the_first_fails(tmp_path, capfd):
    output.begin()

    def fail(path):
        raise ValueError("no")

    assert not output.save(tmp_path / "a", fail)
    assert output.save(tmp_path / "b", lambda path: files.write_whole(path, "text"))
    assert not output.save(None, fail)
    assert output.has_failed()
    assert names(tmp_path) == ["b"]
    assert capfd.readouterr().err.startswith(f"error: {tmp_path / 'a'} could not be written: no")
    output.begin()
    assert not output.has_failed()


def test_a_picture_is_written_whole(tmp_path):
    pyplot = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    ax = pyplot.Figure().subplots()
    output.write_picture(tmp_path / "new" / "x.PNG", ax)
    assert (tmp_path / "new" / "x.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="not supported"):
        output.write_picture(tmp_path / "x.gif2", ax)
    assert names(tmp_path) == ["new", "new/x.PNG"]


@pytest.mark.parametrize("option", ["--time-budget", "--threshold"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_bench_refuses_numbers_that_have_no_end(main, option, value):
    code, _, err = main("bench", option, value)
    assert code == 2
    assert option in err


@posix
def test_what_cannot_be_written_is_named_in_words(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"file is a file: name a folder"):
        files.check_writable(file_in_place_of_a_folder(tmp_path))
    if Path("/proc").exists():
        with pytest.raises(OSError, match=r"^no file can be made in /proc: "):
            files.check_writable(Path("/proc/x.png"))


class FullDisk(io.StringIO):
    """Takes a line, and no more."""

    name = "run.jsonl"

    def write(self, text):
        if self.tell():
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_log_that_can_be_written_no_more_is_said_once_and_the_training_goes_on(capfd):
    output.begin()
    file = FullDisk()
    log = Log(file)
    log.write("start", {"model": "softmax"})
    assert log.is_whole
    assert json.loads(file.getvalue())["event"] == "start"
    for epoch in range(3):
        log.write("epoch", {"epoch": epoch})
    assert not log.is_whole
    assert output.has_failed()
    assert file.closed
    err = capfd.readouterr().err
    assert err.count("run.jsonl could not be written: [Errno 28] No space left on device") == 1
    assert err.count("\n") == 1
