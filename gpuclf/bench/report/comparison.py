"""Two runs of the benchmark, one held against the other: what became slower, and how sure that is.

On a shared machine two runs of the same code differ by more than most changes do. So

- a turn (some consecutive calls) counts once, by its fastest call: calls in a turn meet the same
  disturbance, and a disturbance only ever adds time;
- a row is the tenth percentile of its turns, and its uncertainty that of the turns drawn again;
- what the machine did between the runs is read from rows of others in the same case (textbook
  NumPy, PyTorch, ...), which were timed by turns with this library's, and taken away;
- what became slower is measured again in another process, and the faster measurement counts
  (:func:`undisturbed`);
- what no single run can show, that runs of the same code differ though nothing disturbs them, is
  a constant that was measured (benchmarks/comparison_trial.py);
- the intervals of all rows hold together, with 95 %, and one more row is all of them together;
- where most calls were disturbed, nothing can be told, and that is said.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import t as students_t

from gpuclf.bench.report.markdown import markdown_table

__all__ = [
    "Change",
    "Comparison",
    "compare_records",
    "comparison_markdown",
    "is_overloaded",
    "print_comparison",
    "read_record",
    "undisturbed",
]

VERSION = 2
LEVEL = 0.95  # of all intervals together
QUANTILE = 0.1  # of turns: on a busy machine most are disturbed, and the least one is chance
RESAMPLES = 400
MIN_TURNS = 3
DISTURBED = 3  # the median call by the fastest; on an idle machine it is less than 2
# Standard deviations of logarithms of ratios.
BETWEEN_RUNS = 0.03
BETWEEN_RUNS_APART = 0.30  # where implementations were timed one after another, not by turns
OTHER_CASE = 0.15  # what the machine did in one case tells little of another
UNKNOWN_DRIFT = 0.20
# The more the machine moved, the less exactly one row tells what it did to another.
SHARE_OF_DRIFT = 0.15
BELIEVED_DRIFT = math.log(1.5)  # what one row says beyond that may be about that row alone
DRIFT_SCALE = 0.05  # of Student's t with 3 degrees of freedom
DRIFTS = np.linspace(-4, 4, 8001)
HEADER = ["implementation", "measured", "change", "interval", "verdict"]
LEGEND = (
    "change: of the time, after what rows of others say of the machine; intervals hold together "
    "with 95 %; slower, faster: {:.0%} or more, and significant"
)
TOGETHER = ("all cases", "gpuclf")
STYLES = {"slower": "red", "faster": "green", "not judged": "dim"}


@dataclass(frozen=True)
class Change:
    """What became of one implementation of one case.

    Attributes
    ----------
    case, implementation : str
    ratio, low, high : float or None
        New time by old time, and its interval: for this library's rows after what the machine did
        is taken away, for others as measured. None where not comparable.
    measured : float or None
        The ratio as measured.
    verdict : {"slower", "faster", "no change", "broken", "not judged", "not comparable"}
        "broken": was timed in the old run and gives no valid time in the new one. Rows of others
        are not judged: they are the yardstick.
    reason : str
        Why; may be empty.
    """

    case: str
    implementation: str
    ratio: float | None
    low: float | None
    high: float | None
    measured: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """All changes, with the threshold that they were judged by.

    Attributes
    ----------
    rows : list of Change
    threshold : float
    warnings : list of str
        What else differs between the runs, and may explain a change.
    """

    rows: list[Change]
    threshold: float
    warnings: list[str]

    @property
    def judged(self) -> list[Change]:
        """The rows of this library that could be compared; without any, nothing was tested."""
        return [row for row in self.rows if row.verdict in ("slower", "faster", "no change")]

    @property
    def regressions(self) -> list[Change]:
        """The rows of this library that became slower."""
        return [row for row in self.rows if row.verdict == "slower"]

    @property
    def broken(self) -> list[Change]:
        """The rows of this library that were timed and now fail."""
        return [row for row in self.rows if row.verdict == "broken"]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing is slower or broken: what a gate wants."""
        return bool(self.judged) and not self.regressions and not self.broken

    @property
    def worst(self) -> Change | None:
        """The row of this library with the largest ratio."""
        return max(self.judged, key=lambda row: row.ratio or 0.0, default=None)

    @property
    def summary(self) -> str:
        """A sentence for people."""
        n_judged = len(self.judged)
        broken = f"; {len(self.broken)} broken" if self.broken else ""
        if not n_judged:
            return f"nothing could be compared{broken}"
        if not self.regressions:
            least = f"{self.threshold:.0%} or more"
            return f"nothing became slower by {least} ({n_judged} compared){broken}"
        worst = max(self.regressions, key=lambda row: row.ratio or 0.0)
        return (
            f"{len(self.regressions)} of {n_judged} became slower{broken}; worst: "
            f"{worst.implementation}, {worst.case}: {_percent(worst.ratio)} ({_interval(worst)})"
        )


# ----------------------------------------------------------------------------------- reading


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``gpuclf bench --json`` or pytest-benchmark's ``--benchmark-json`` wrote.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        In the form of ``gpuclf bench --json``; of pytest-benchmark's record what there is of it.

    Raises
    ------
    ValueError
        If the file holds anything else.
    """
    expected = "expected what `gpuclf bench --json` or `pytest --benchmark-json` writes"
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {expected}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; {expected}")
    if record.get("version", 1) in (1, VERSION) and _are_rows(record.get("rows")):
        return _completed(record)
    if "machine_info" in record and isinstance(record.get("benchmarks"), list):
        rows = [_pytest_row(entry) for entry in record["benchmarks"]]
        if not _are_rows(rows := [row for row in rows if row is not None]):
            raise ValueError(
                f"{path} has no times of benchmarks/test_cases.py; saved runs need "
                "--benchmark-save-data"
            )
        info = record["machine_info"]
        cpu = info.get("cpu", {})
        known = {"cpu": cpu.get("brand_raw"), "cpu_count": cpu.get("count")}
        environment = info.get("gpuclf", known | {"python": info.get("python_version")})
        return _completed({"environment": environment, "by_turns": False, "rows": rows})
    if "rows" in record and record.get("version", 1) not in (1, VERSION):
        raise ValueError(f"{path} is of version {record['version']}, known are 1 and {VERSION}")
    raise ValueError(f"{path} has {', '.join(map(repr, record)) or 'nothing'}; {expected}")


def undisturbed(record: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return a record with each case from the run, of two of the same code, where it was faster.

    Something that lasts for a whole run, or belongs to one process, makes a row slower that no
    statistics of that run can excuse. What is slower in two processes is slower.

    Parameters
    ----------
    record, again : dict
        `again` may hold some of the rows only.
    """
    both = [record["rows"], again["rows"]]

    def pace(rows: list[dict[str, Any]], case: str) -> dict[str, float]:
        return {
            row["implementation"]: math.log(np.quantile(row["times_s"], QUANTILE))
            for row in rows
            if row["case"] == case and row["status"] == "timed" and _is_own(row["implementation"])
        }

    chosen = {}
    for case in dict.fromkeys(row["case"] for row in both[0]):
        first, second = (pace(rows, case) for rows in both)
        common = first.keys() & second.keys()
        slower = sum(first[name] - second[name] for name in common) > 0
        chosen[case] = {(r["case"], r["implementation"]): r for r in both[slower]}

    def better(row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = chosen[row["case"]].get((row["case"], row["implementation"]), row)
        return found

    return record | {"rows": [better(row) for row in record["rows"]]}


def _are_rows(rows: Any) -> bool:
    wanted = {"operation", "implementation", "samples", "times_s"}
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and wanted <= row.keys() for row in rows)
    )


def _pytest_row(entry: dict[str, Any]) -> dict[str, Any] | None:
    row, times = entry.get("extra_info", {}), entry.get("stats", {}).get("data")
    if "operation" not in row or not times:
        return None
    scale = row["samples"] / row["measured_samples"]
    times = [t * scale for t in times]
    p20, median, p80 = np.percentile(times, [20, 50, 80]).tolist()
    known = {"times_s": times, "median_s": median, "p20_s": p20, "p80_s": p80}
    return {"case": entry["group"], **row, **known}


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """Add what records of before do not have."""
    is_of_peers = record.get("settings", {}).get("peers", False)
    rows = []
    for row in record["rows"]:
        reason, net = row.get("unavailable"), row["operation"].startswith("two-layer loss")
        known = {
            "case": f"{row['operation']}, {row['samples']:,} samples",
            "device": "cuda" if row.get("array_library") == "cupy" else "cpu",
            "status": "unavailable" if reason else "timed",
            "reason": reason,
        }
        if net and record.get("version", 1) == 1:
            known["hidden_units"] = 100 if is_of_peers else 50
        rows.append(known | row)
    return {"environment": {}, "dataset": {}, **record, "rows": rows}


# --------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Ratio:
    """The logarithm of new by old, its variance within the runs, and turns less one."""

    log: float
    variance: float
    freedom: float


def compare_records(old: dict[str, Any], new: dict[str, Any], threshold: float = 0.1) -> Comparison:
    """Compare two runs of the benchmark.

    A row is "slower" if its interval lies above 1 and its ratio is at least 1 + `threshold`, and
    "faster" if that holds for old by new.

    Parameters
    ----------
    old, new : dict
        Records, as :func:`read_record` returns them.
    threshold : float
        The least change worth a verdict: 0.1 is 10 %.

    Returns
    -------
    Comparison
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more (0.1 is 10 %), got {threshold}")
    old, new = _completed(old), _completed(new)
    before = {(row["case"], row["implementation"]): row for row in old["rows"]}
    after = {(row["case"], row["implementation"]): row for row in new["rows"]}
    apart = not (old.get("by_turns", True) and new.get("by_turns", True))
    between = BETWEEN_RUNS_APART if apart else BETWEEN_RUNS
    machines = _other_machine(old["environment"], new["environment"])
    overloaded = [when for when, run in (("old", before), ("new", after)) if is_overloaded(run)]
    rng = np.random.default_rng(0)
    ratios, reasons = {}, {}
    listed = [key for key in after | before if not _is_missing(before.get(key), after.get(key))]
    for key in listed:
        reason = _not_comparable(before.get(key), after.get(key), machines)
        if overloaded and not reason:
            reason = f"the machine was overloaded in the {' and the '.join(overloaded)} run"
        if reason:
            reasons[key] = reason
        else:
            ratios[key] = _ratio(before[key], after[key], rng)
    versions = _other_versions(old["environment"], new["environment"])
    yardsticks = {
        key: ratio
        for key, ratio in ratios.items()
        if not _is_own(key[1])
        and not after[key].get("extrapolated")  # few calls, of one thread
        and not any(name in key[1].lower() for name in versions)
    }
    corrected = {}
    for key, ratio in ratios.items():
        if _is_own(key[1]):
            device = after[key]["device"]
            same_device = {k: r for k, r in yardsticks.items() if after[k]["device"] == device}
            corrected[key] = _corrected(key[0], ratio, same_device, between)
    n_judged = len(corrected) + 1  # the last is all of them together
    rows = []
    for key in listed:
        if key in corrected:
            rows.append(_judged(key, corrected[key], ratios[key].log, n_judged, threshold))
        elif key in ratios:
            rows.append(Change(*key, *_numbers(ratios[key], 1), "not judged"))
        else:
            verdict = "broken" if _is_broken(before.get(key), after.get(key)) else "not comparable"
            rows.append(Change(*key, None, None, None, None, verdict, reasons[key]))
    if len(corrected) > 1:
        together, measured = (
            _together(list(corrected.values()), [each[key].log for key in corrected], between)
            for each in (corrected, ratios)
        )
        rows.append(_judged(TOGETHER, together, measured.log, n_judged, threshold))
    return Comparison(rows, threshold, _warnings(old, new, versions, apart))


def _is_own(implementation: str) -> bool:
    return implementation.startswith("gpuclf")


def _is_missing(*rows: dict[str, Any] | None) -> bool:
    """Whether it could not run before either: nobody wants to read that again."""
    return all(row is not None and row["status"] == "unavailable" for row in rows)


def _is_broken(old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    return (
        old is not None
        and new is not None
        and _is_own(new["implementation"])
        and old["status"] == "timed"
        and new["status"] in ("wrong", "failed", "rejected")
    )


def _ratio(old: dict[str, Any], new: dict[str, Any], rng: np.random.Generator) -> Ratio:
    known = [row["calls_a_turn"] for row in (old, new) if row.get("calls_a_turn")]
    calls = min(known, default=1)
    turns = [_turns(row["times_s"], calls) for row in (old, new)]
    log_old, log_new = (float(np.quantile(fastest, QUANTILE)) for fastest in turns)
    variance = 0.0
    for fastest in turns:
        drawn = rng.choice(fastest, (RESAMPLES, len(fastest)))
        variance += float(np.quantile(drawn, QUANTILE, axis=1).var())
    return Ratio(log_new - log_old, variance, min(map(len, turns)) - 1)


def _turns(times_s: list[float], calls: int) -> Any:
    """Return the logarithm of the fastest call of each turn."""
    times = np.log(times_s[: len(times_s) - len(times_s) % calls])
    return times.reshape(-1, calls).min(axis=1)


def _corrected(
    case: str, ratio: Ratio, yardsticks: dict[tuple[str, str], Ratio], between: float
) -> Ratio:
    """Take away what the machine did, and add what is not known of that."""
    drift, variance = _drift(case, yardsticks, between)
    unbelieved = max(0.0, abs(drift) - BELIEVED_DRIFT)
    variance += ratio.variance + between**2 + (SHARE_OF_DRIFT * drift) ** 2 + unbelieved**2
    # Welch and Satterthwaite: of the sum of variances, only the row's own comes from few turns.
    freedom = ratio.freedom * (variance / max(ratio.variance, 1e-12)) ** 2
    return Ratio(ratio.log - drift, variance, freedom)


def _together(ratios: list[Ratio], logs: list[float], between: float) -> Ratio:
    """Average over rows, the surer ones counting more: a small change of all is seen sooner."""
    weights = np.array([1 / ratio.variance for ratio in ratios])
    freedom = weights.sum() ** 2 / sum(
        w**2 / ratio.freedom for w, ratio in zip(weights, ratios, strict=True)
    )
    # Rows of a run share a part of what differs between runs.
    variance = 1 / weights.sum() + between**2
    return Ratio(float(np.average(logs, weights=weights)), float(variance), float(freedom))


def _drift(
    case: str, yardsticks: dict[tuple[str, str], Ratio], between: float
) -> tuple[float, float]:
    """Return what the machine did in a case, as mean and variance of a logarithm.

    Before looking, Student's t with 3 degrees of freedom: mostly little, sometimes much. So a
    noisy yardstick that agrees with no drift adds little noise, and one that moved far is believed.
    """
    of_case = [ratio for key, ratio in yardsticks.items() if key[0] == case]
    extra = between**2 + (0.0 if of_case else OTHER_CASE**2)
    used = of_case or list(yardsticks.values())
    if not used:
        return 0.0, UNKNOWN_DRIFT**2
    log_p = -2 * np.log1p((DRIFTS / DRIFT_SCALE) ** 2 / 3)
    for ratio in used:
        log_p -= (ratio.log - DRIFTS) ** 2 / (2 * (ratio.variance + extra))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = float(p @ DRIFTS)
    return mean, float(p @ (DRIFTS - mean) ** 2)


def _numbers(ratio: Ratio, n_judged: int) -> tuple[float, float, float, float]:
    """Return ratio, low and high (of intervals that hold together) and the ratio again."""
    level = 1 - (1 - LEVEL) / (2 * n_judged)  # Bonferroni, both sides
    width = float(students_t.ppf(level, ratio.freedom)) * math.sqrt(ratio.variance)
    found = math.exp(ratio.log)
    return found, math.exp(ratio.log - width), math.exp(ratio.log + width), found


def _judged(
    key: tuple[str, str], ratio: Ratio, measured_log: float, n_judged: int, threshold: float
) -> Change:
    found, low, high, _ = _numbers(ratio, n_judged)
    numbers = (found, low, high, math.exp(measured_log))
    if low > 1 and found >= 1 + threshold:
        return Change(*key, *numbers, "slower")
    if high < 1 and 1 / found >= 1 + threshold:
        return Change(*key, *numbers, "faster")
    reason = ""
    if low > 1 or high < 1:
        reason = f"significant, but less than {threshold:.0%}"
    elif high / found > (1 + threshold) ** 2:
        reason = f"blind below {high / found - 1:.0%}"
    return Change(*key, *numbers, "no change", reason)


# ------------------------------------------------------------------------ what is comparable


def _not_comparable(
    old: dict[str, Any] | None, new: dict[str, Any] | None, machines: dict[str, str]
) -> str:
    if old is None or new is None:
        return f"only in the {'new' if old is None else 'old'} run"
    for when, row in (("old", old), ("new", new)):
        if row["status"] != "timed":
            return f"{row['status']} in the {when} run: {row['reason']}"
        if len(row["times_s"]) < MIN_TURNS * (row.get("calls_a_turn") or 1):
            return f"fewer than {MIN_TURNS} turns in the {when} run"
        if _is_own(row["implementation"]) and _disturbance(row) > DISTURBED:
            return f"disturbed in the {when} run: most calls lasted {DISTURBED} times the fastest"
    for name in (
        "device", "dtype", "features", "precision", "samples", "measured_samples", "classes",
        "hidden_units", "models",
    ):  # fmt: skip
        if name in old and name in new and old[name] != new[name]:
            return f"other {name.replace('_', ' ')}: {old[name]}, now {new[name]}"
    return machines.get(new["device"], "")


def _disturbance(row: dict[str, Any]) -> float:
    return float(np.median(row["times_s"]) / min(row["times_s"]))


def is_overloaded(rows: dict[tuple[str, str], dict[str, Any]]) -> bool:
    """Whether at least half of the rows were disturbed: then the others were, unseen."""
    timed = [row for row in rows.values() if row["times_s"] and not row.get("extrapolated")]
    return 2 * sum(_disturbance(row) > DISTURBED for row in timed) >= max(1, len(timed))


def _other_machine(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Say, for each device, what forbids comparing."""
    found = {}
    for device, names in {"cpu": ("cpu", "cpu_count", "threads"), "cuda": ("gpu",)}.items():
        for name in names:
            was, now = (each.get(name) for each in (old, new))
            if name == "gpu":
                was, now = (gpu and gpu.get("name") for gpu in (was, now))
            if was and now and was != now:
                found[device] = f"other {name.replace('_', ' ')}: {was}, now {now}"
                break
    return found


def _other_versions(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return what changed of each package that rows of others are made of."""
    if not (old.get("versions") and new.get("versions")):
        return {}
    was, now = (each["versions"] | {"naive": each.get("python")} for each in (old, new))
    # NumPy's and SciPy's are in one list, in the order in which they were loaded.
    libraries = [
        {f"{b['library']} {b['version']} {b.get('architecture')}" for b in each.get("blas") or []}
        for each in (old, new)
    ]
    if all(libraries) and not libraries[0] & libraries[1]:
        for versions, found in zip((was, now), libraries, strict=True):
            versions["numpy"] = f"{versions.get('numpy')} with {', '.join(sorted(found))}"
    return {
        name.split("-cuda")[0]: f"{was.get(name, 'none')}, now {now.get(name, 'none')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name) and name != "gpuclf"
    }


def _warnings(
    old: dict[str, Any], new: dict[str, Any], versions: dict[str, str], apart: bool
) -> list[str]:
    found = [
        f"other {'Python' if name == 'naive' else name}: {what}" for name, what in versions.items()
    ]
    for what, was, now in (
        ("data", old["dataset"].get("name"), new["dataset"].get("name")),
        ("platform", old["environment"].get("platform"), new["environment"].get("platform")),
    ):
        if was and now and was != now:
            found.append(f"other {what}: {was}, now {now}")
    unknown = [n for n in ("cpu", "threads") if not old["environment"].get(n)]
    if unknown:
        found.append(f"the old run does not say on what it ran: {' and '.join(unknown)}")
    if apart:
        found.append("timed one after another, not by turns: only large changes can be seen")
    return found


# ------------------------------------------------------------------------------------ report


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table for each case, what could not be compared, and a sentence."""
    for warning in comparison.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
    compared = [row for row in comparison.rows if row.ratio is not None]
    for case in dict.fromkeys(row.case for row in compared):
        table = Table(title=case, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column in HEADER:
            right = column in HEADER[1:4]
            table.add_column(column, justify="right" if right else "left", no_wrap=right)
        for row in compared:
            if row.case == case:
                cells = [Text(cell) for cell in _cells(row)]
                table.add_row(*cells, style=STYLES.get(row.verdict))
        console.print(table)
    for (verdict, reason), names in _by_reason(comparison).items():
        style = "red" if verdict == "broken" else "yellow"
        line = Text.assemble((f"{verdict}: ", style), f"{reason} ({'; '.join(names)})")
        console.print(line, soft_wrap=True)
    console.print(LEGEND.format(comparison.threshold), style="dim", highlight=False)
    console.print(
        Text(comparison.summary, "bold" if comparison.passed else "bold red"), soft_wrap=True
    )


def comparison_markdown(comparison: Comparison) -> str:
    """Write the same as Markdown, the sentence first."""
    parts = [f"**{comparison.summary}**"]
    parts += [f"Warning: {warning}" for warning in comparison.warnings]
    compared = [row for row in comparison.rows if row.ratio is not None]
    if compared:
        lines = [[row.case, *_cells(row)] for row in compared]
        parts.append(markdown_table(["case", *HEADER], lines))
    parts += [
        f"Not comparable: {why} ({', '.join(n)})" for why, n in _by_reason(comparison).items()
    ]
    return "\n\n".join([*parts, LEGEND.format(comparison.threshold)]) + "\n"


def _cells(row: Change) -> list[str]:
    verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
    return [
        row.implementation,
        _percent(row.measured),
        _percent(row.ratio),
        _interval(row),
        verdict,
    ]


def _by_reason(comparison: Comparison) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        if row.ratio is None:
            found.setdefault((row.verdict, row.reason), []).append(
                f"{row.implementation}, {row.case}"
            )
    return found


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio - 1:+.0%}"


def _interval(row: Change) -> str:
    return f"{_percent(row.low)} to {_percent(row.high)}"
