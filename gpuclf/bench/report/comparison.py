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
  a constant that was measured (`BETWEEN_RUNS`);
- the intervals of all rows hold together, with 95 %, and one more row is all of them together;
- where most calls were disturbed, nothing can be told, and that is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from scipy.stats import t as students_t

from gpuclf.bench.report.records import completed
from gpuclf.bench.report.table import new_table

__all__ = [
    "Change",
    "Comparison",
    "compare_records",
    "is_overloaded",
    "print_comparison",
    "undisturbed",
]

Key = tuple[str, str]  # case and implementation

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
LARGEST_LOG = 700.0  # that a float has an exponential of
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


def undisturbed(record: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """Return a record with each case from the run, of two of the same code, where it was faster.

    Something that lasts for a whole run, or belongs to one process, makes a row slower that no
    statistics of that run can excuse. What is slower in two processes is slower.

    Parameters
    ----------
    record, again : dict
        `again` may hold some of the rows only.
    """
    first, second = _by_key(record), _by_key(again)
    longer = dict.fromkeys((case for case, _ in first), 0.0)  # the first run, by a logarithm
    for key in first:
        rows = [run[key] for run in (first, second) if key in run and run[key]["status"] == "timed"]
        if len(rows) == 2 and _is_own(key):
            was, now = (np.quantile(row["times_s"], QUANTILE) for row in rows)
            longer[key[0]] += math.log(was / now)
    return record | {
        "rows": [second.get(key, row) if longer[key[0]] > 0 else row for key, row in first.items()]
    }


def _by_key(record: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    return {(row["case"], row["implementation"]): row for row in record["rows"]}


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
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be finite, 0 or more (0.1 is 10 %), got {threshold}")
    old, new = completed(old), completed(new)
    before, after = _by_key(old), _by_key(new)
    apart = not (old.get("by_turns", True) and new.get("by_turns", True))
    between = BETWEEN_RUNS_APART if apart else BETWEEN_RUNS
    machines = _other_machine(old["environment"], new["environment"])
    versions = _other_versions(old["environment"], new["environment"])
    overloaded = [when for when, run in (("old", old), ("new", new)) if is_overloaded(run["rows"])]
    rng = np.random.default_rng(0)
    ratios, failed = {}, []
    for key in after | before:
        was, now = before.get(key), after.get(key)
        if was and now and was["status"] == now["status"] == "unavailable":
            continue  # nobody wants to read that again
        reason = _not_comparable(was, now, machines)
        if overloaded and not reason:
            reason = f"the machine was overloaded in the {' and the '.join(overloaded)} run"
        if reason:
            verdict = "broken" if _is_broken(key, was, now) else "not comparable"
            failed.append(Change(*key, None, None, None, None, verdict, reason))
        else:
            ratios[key] = _ratio(before[key], after[key], rng)
    yardsticks = {
        key: ratio
        for key, ratio in ratios.items()
        if not _is_own(key)
        and not _is_of_loops(after[key])
        and not any(name in key[1].lower() for name in versions)
    }
    corrected = {}
    for key, ratio in ratios.items():
        if _is_own(key):
            device = after[key]["device"]
            same_device = {k: r for k, r in yardsticks.items() if after[k]["device"] == device}
            corrected[key] = _corrected(key[0], ratio, same_device, between)
    n_judged = len(corrected) + 1  # the last is all of them together
    rows = [
        _change(key, corrected[key], ratio.log, n_judged, threshold)
        if key in corrected
        else _change(key, ratio, ratio.log, 1, None)
        for key, ratio in ratios.items()
    ]
    if len(corrected) > 1:
        together, measured = (
            _together(list(corrected.values()), [each[key].log for key in corrected], between)
            for each in (corrected, ratios)
        )
        rows.append(_change(TOGETHER, together, measured.log, n_judged, threshold))
    return Comparison(rows + failed, threshold, _warnings(old, new, versions, apart))


def _is_own(key: Key) -> bool:
    return key[1].startswith("gpuclf")


def _is_of_loops(row: dict[str, Any]) -> bool:
    """Whether it is of Python's loops: few calls, of one thread, tell nothing of the machine."""
    return row.get("array_library") == "python" or bool(row.get("extrapolated"))


def _is_broken(key: Key, old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    return bool(
        old
        and new
        and _is_own(key)
        and old["status"] == "timed"
        and new["status"] in ("wrong", "failed", "rejected")
    )


def _ratio(old: dict[str, Any], new: dict[str, Any], rng: np.random.Generator) -> Ratio:
    calls = min((row["calls_a_turn"] for row in (old, new) if row.get("calls_a_turn")), default=1)
    logs, variance, n_turns = [], 0.0, []
    for times in (old["times_s"], new["times_s"]):
        turns = np.log(times[: len(times) - len(times) % calls]).reshape(-1, calls).min(axis=1)
        drawn = rng.choice(turns, (RESAMPLES, len(turns)))
        variance += float(np.quantile(drawn, QUANTILE, axis=1).var())
        logs.append(float(np.quantile(turns, QUANTILE)))
        n_turns.append(len(turns))
    return Ratio(logs[1] - logs[0], variance, min(n_turns) - 1)


def _corrected(case: str, ratio: Ratio, yardsticks: dict[Key, Ratio], between: float) -> Ratio:
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


def _drift(case: str, yardsticks: dict[Key, Ratio], between: float) -> tuple[float, float]:
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


def _change(
    key: Key, ratio: Ratio, measured_log: float, n_judged: int, threshold: float | None
) -> Change:
    """Judge a row, unless it has no threshold; intervals of all rows judged hold together."""
    level = 1 - (1 - LEVEL) / (2 * n_judged)  # Bonferroni, both sides
    width = float(students_t.ppf(level, ratio.freedom)) * math.sqrt(ratio.variance)
    logs = ratio.log, ratio.log - width, ratio.log + width, measured_log
    found, low, high, measured = map(_exp, logs)
    verdict, reason = "no change", ""
    if threshold is None:
        verdict = "not judged"
    elif low > 1 and found >= 1 + threshold:
        verdict = "slower"
    elif high < 1 and 1 / found >= 1 + threshold:
        verdict = "faster"
    elif low > 1 or high < 1:
        reason = f"significant, but less than {threshold:.0%}"
    elif high / found > (1 + threshold) ** 2:
        reason = f"blind below {high / found - 1:.0%}"
    return Change(*key, found, low, high, measured, verdict, reason)


def _exp(log: float) -> float:
    return math.exp(min(log, LARGEST_LOG)) if log > -LARGEST_LOG else math.exp(-LARGEST_LOG)


# ------------------------------------------------------------------------ what is comparable


def _not_comparable(
    old: dict[str, Any] | None, new: dict[str, Any] | None, machines: dict[str, str]
) -> str:
    if old is None or new is None:
        return f"only in the {'new' if old is None else 'old'} run"
    for when, row in (("old", old), ("new", new)):
        if row["status"] != "timed":
            return f"{row['status']} in the {when} run: {row['reason']}"
        if not all(0 < seconds < math.inf for seconds in row["times_s"]):
            return f"times in the {when} run that are not finite and above 0"
        if len(row["times_s"]) < MIN_TURNS * (row.get("calls_a_turn") or 1):
            return f"fewer than {MIN_TURNS} turns in the {when} run"
        if row["implementation"].startswith("gpuclf") and _disturbance(row) > DISTURBED:
            return f"disturbed in the {when} run: most calls lasted {DISTURBED} times the fastest"
    for name in (
        "device", "dtype", "stored", "precision", "samples", "measured_samples", "classes",
        "hidden_units", "models",
    ):  # fmt: skip
        if name in old and name in new and old[name] != new[name]:
            return f"other {name.replace('_', ' ')}: {old[name]}, now {new[name]}"
    return machines.get(new["device"], "")


def _disturbance(row: dict[str, Any]) -> float:
    """Return the median call by the fastest; 1 where times mean nothing."""
    fastest = min(row["times_s"])
    return _exp(math.log(np.median(row["times_s"])) - math.log(fastest)) if fastest > 0 else 1.0


def is_overloaded(rows: list[dict[str, Any]]) -> bool:
    """Whether at least half of the rows were disturbed: then the others were, unseen."""
    timed = [row for row in rows if row["times_s"] and not _is_of_loops(row)]
    return 2 * sum(_disturbance(row) > DISTURBED for row in timed) >= max(1, len(timed))


def _other_machine(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Say, for each device, what forbids comparing."""
    found: dict[str, str] = {}
    for device, name in (("cpu", "cpu"), ("cpu", "cpu_count"), ("cpu", "threads"), ("cuda", "gpu")):
        was, now = (each.get(name) for each in (old, new))
        if name == "gpu":
            was, now = (gpu and gpu.get("name") for gpu in (was, now))
        if was and now and was != now:
            found.setdefault(device, f"other {name.replace('_', ' ')}: {was}, now {now}")
    return found


def _other_versions(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return what changed of each package that rows of others are made of."""
    if not (old.get("versions") and new.get("versions")):
        return {}
    was, now = (each["versions"] | {"Python": each.get("python")} for each in (old, new))
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
    found = [f"other {name}: {what}" for name, what in versions.items()]
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
        table = new_table(case, ["measured", "change", "interval"], last="verdict")
        for row in compared:
            if row.case == case:
                verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
                numbers = _percent(row.measured), _percent(row.ratio), _interval(row)
                cells = map(Text, (row.implementation, *numbers, verdict))
                table.add_row(*cells, style=STYLES.get(row.verdict))
        console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in comparison.rows:
        if row.ratio is None:
            name = f"{row.implementation}, {row.case}"
            reasons.setdefault((row.verdict, row.reason), []).append(name)
    for (verdict, reason), names in reasons.items():
        style = "red" if verdict == "broken" else "yellow"
        line = Text.assemble((f"{verdict}: ", style), f"{reason} ({'; '.join(names)})")
        console.print(line, soft_wrap=True)
    console.print(LEGEND.format(comparison.threshold), style="dim", highlight=False)
    console.print(
        Text(comparison.summary, "bold" if comparison.passed else "bold red"), soft_wrap=True
    )


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio - 1:+.0%}"


def _interval(row: Change) -> str:
    return f"{_percent(row.low)} to {_percent(row.high)}"
