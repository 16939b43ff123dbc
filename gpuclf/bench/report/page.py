"""The result as one page for a browser: a summary, charts, a table, and the record itself.

The page is built as a tree of elements, which escapes whatever the record says. A template library
would be one more dependency of the core, and most of the page is charts, which are computed anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import defaultdict
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element, tostring

from gpuclf.bench.measure.cases import SCALING
from gpuclf.bench.report.page_charts import (
    COLUMNS,
    Row,
    cell,
    duration,
    ladder,
    rate,
    roofline,
    scaling,
    tag,
)
from gpuclf.bench.report.records import completed
from gpuclf.bench.report.table import TEXTBOOK, axis_value, fastest, format_number

__all__ = ["render_page"]

LOOPS = {"naive loops": "the course's naive loops", "pure Python loops": "pure Python loops"}
NOTE = 48  # letters of a note in the table; longer ones are said once, below the ladder
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def render_page(record: dict[str, Any]) -> str:
    """Return a record, of whatever version, as a page that needs no network: HTML.

    Its script only sorts, filters and copies.
    """
    plain = json.dumps(record).replace("<", "\\u003c")  # "<" could end the element early
    record = completed(record)
    cases: dict[str, list[Row]] = {}
    for row in map(_derived, record["rows"]):
        cases.setdefault(row["case"], []).append(row)
    for of_case in cases.values():
        textbook = fastest(of_case, TEXTBOOK)
        for row in of_case:
            if textbook and row["timed"] and row is not textbook:
                row["versus"] = textbook["median_s"] / row["median_s"]
    rows = [row for of_case in cases.values() for row in of_case]
    ladders = [of_case for of_case in cases.values() if of_case[0]["group"] not in SCALING]
    styles = {name: i for i, name in enumerate(dict.fromkeys(r["implementation"] for r in rows))}
    sections = [
        _ladder_section(ladders, styles),
        _roofline_section(rows, record, styles),
        _scaling_section(rows, record.get("break_even") or [], styles),
        _table_section(rows),
        _environment_section(record),
        _reproduce_section(record.get("command")),
    ]
    unfinished = record.get("unfinished")
    content = tag(
        "body",
        tag("h1", "gpuclf benchmark"),
        tag("div", [tag("p", p) for p in _summary(record, ladders, rows)], class_="summary"),
        unfinished and tag("p", f"This run was not finished: {unfinished}.", class_="note"),
        tag("nav", [tag("a", s[0].text, href=f"#{s.get('id')}") for s in sections]),
        tag("main", sections),
        tag("script", plain, type="application/json", id="record"),
    )
    style, script = ((files(__package__) / f"page.{x}").read_text("utf-8") for x in ("css", "js"))
    content.append(tag("script", script))
    page = tag("html", _head(style, script), content, lang="en")
    return f"<!DOCTYPE html>\n{tostring(page, encoding='unicode', method='html')}\n"


def _head(style: str, script: str) -> Element:
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "gpuclf benchmark"),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _derived(row: Row) -> Row:
    """Return a row with what the page computes from it; what a record lacks is None."""
    row = defaultdict(lambda: None, row)
    row["n"] = row["n"] or len(row["times_s"] or [])
    median = row["median_s"]
    row["timed"] = bool(row["status"] == "timed" and median and math.isfinite(median))
    if not row["timed"]:
        row["median_s"] = median = None
    if median and row["operations"] and row["bytes"]:
        row["intensity"] = row["operations"] / row["bytes"]
        row["speed"] = row["operations"] / median
    if row["group"] in SCALING:
        row["size"] = axis_value(row["group"], row)
    row["model_s"] = median / row["models"] if median and (row["models"] or 1) > 1 else None
    row["device_median_s"] = (row["device_s"] or {}).get("median")
    row["queued_median_s"] = (row["queued_s"] or {}).get("median")
    row["host_median_s"] = (row["host_s"] or {}).get("median")
    row["error"] = max((row["errors"] or {}).values(), default=None)
    return row


def _section(title: str, explanation: str, *content: Any) -> Element:
    return tag("section", tag("h2", title), tag("p", explanation), *content, id=title.lower())


def _charts(title: str, words: str, charts: list[Element], lines: list[str]) -> Element:
    grid = tag("div", charts, class_="charts") if charts else None
    items = [tag("li", _with_code(line)) for line in lines]
    return _section(title, words, grid, tag("ul", items) if items else None)


def _with_code(text: str) -> list[Any]:
    """Return a text with what stands in backticks as code."""
    parts = text.split("`")
    return [tag("code", part) if i % 2 else part for i, part in enumerate(parts)]


# ---------------------------------------------------------------------------------- summary


def _times(ratio: float) -> str:
    return f"{format_number(max(ratio, 1 / ratio))} times {'faster' if ratio >= 1 else 'slower'}"


def _summary(record: Row, ladders: list[list[Row]], rows: list[Row]) -> list[Any]:
    environment = record["environment"]
    gpu = environment.get("gpu") or {}
    machine = [environment.get("cpu") or "an unknown CPU"]
    if environment.get("threads"):
        machine.append(f"{environment['threads']} threads")
    measured = (
        f"{sum(row['timed'] for row in rows)} of {len(rows)} rows were timed on "
        f"{record['dataset'].get('name') or 'data that the record does not name'}; "
        f"{', '.join(machine)}."
    )
    reasons = [row["reason"] for row in rows if row["array_library"] == "cupy"]
    reason = gpu.get("reason") or next(filter(None, reasons), None) or "none was asked for"
    on_gpu = next(filter(None, map(_gpu_line, ladders)), f"No row ran on a GPU: {reason}.")
    if gpu.get("name"):
        on_gpu = f"{gpu['name']}: {on_gpu}"
    headline = next(filter(None, map(_headline, ladders)), "No row of this library was timed.")
    details = next(filter(None, map(_details, ladders)), [])
    return [part for part in (headline, details, _range(ladders), on_gpu, measured) if part]


def _headline(of_case: list[Row]) -> list[Any]:
    own = fastest(of_case, "gpuclf", "numpy")
    if own is None:
        return []
    words: list[Any] = [f"{own['implementation']} does {own['case']}, in "]
    words.append(tag("strong", duration(own["median_s"])))
    for joint, other in zip((": ", " and "), _rivals(of_case), strict=False):
        name = LOOPS.get(other["implementation"], other["implementation"])
        ratio = tag("strong", _times(other["median_s"] / own["median_s"]))
        words += [joint, ratio, f" than {name}"]
    return [*words, "."]


def _rivals(of_case: list[Row]) -> list[Row]:
    loops = [row for name in LOOPS if (row := fastest(of_case, name))][:1]
    return [row for row in (fastest(of_case, TEXTBOOK), *loops) if row]


def _details(of_case: list[Row]) -> list[Any]:
    """Say how sure the headline's times are, and how near they come to the machine's limit."""
    own = fastest(of_case, "gpuclf", "numpy")
    if own is None:
        return []
    words: list[Any] = []
    if own["p20_s"]:
        words.append(f"20th to 80th percentile {cell(own, 'p20..p80')[0]}, n = {own['n']}. ")
    for other in _rivals(of_case):
        if other["extrapolated"]:
            name = LOOPS.get(other["implementation"], other["implementation"])
            words.append(f"The time of {name} is extrapolated from {other['measured_samples']} ")
            words.append("samples. ")
    if own["floor_s"]:
        limit = f"'s {own['limited_by']} rate" if own["limited_by"] else ""
        words.append(f"The machine{limit} could do it in {duration(own['floor_s'])}: ")
        share = tag("strong", f"{own['floor_s'] / own['median_s']:.0%}")
        words += [share, " of the speed possible."]
    return words


def _range(ladders: list[list[Row]]) -> str:
    rows = [fastest(of_case, "gpuclf", "numpy") for of_case in ladders]
    ratios = [row["versus"] for row in rows if row and row["versus"]]
    if len(ratios) < 2:
        return ""
    return (
        f"Over {len(ratios)} cases, its fastest row on the CPU is from {_times(min(ratios))} to "
        f"{_times(max(ratios))} than {TEXTBOOK}."
    )


def _gpu_line(of_case: list[Row]) -> str:
    gpu, cpu = (fastest(of_case, "gpuclf", library) for library in ("cupy", "numpy"))
    if gpu is None:
        return ""
    words = f"{gpu['implementation']} does {gpu['case']}, in {duration(gpu['median_s'])}"
    if cpu:
        words += f", {_times(cpu['median_s'] / gpu['median_s'])} than {cpu['implementation']}"
    return f"{words}."


# ----------------------------------------------------------------------------------- charts


def _ladder_section(ladders: list[list[Row]], styles: dict[str, int]) -> Element:
    reasons: dict[str, dict[str, None]] = {}
    for row in (row for of_case in ladders for row in of_case if not row["timed"]):
        words = f"({row['status']}): {row['reason'] or 'the record gives no reason'}"
        reasons.setdefault(words, {})[row["implementation"]] = None
    return _charts(
        "Ladder",
        "Time of a call on a logarithmic scale; shorter is better. A bar ends at the median, its "
        "whisker spans the 20th to the 80th percentile, and the ratio is to the speed of "
        f"{TEXTBOOK}. ≈: extrapolated from fewer samples. Floor: the least time that the measured "
        "rates of memory and arithmetic allow.",
        [ladder(of_case, styles) for of_case in ladders],
        [f"{'; '.join(names)} {reason}" for reason, names in reasons.items()],
    )


def _roofline_section(rows: list[Row], record: Row, styles: dict[str, int]) -> Element:
    charts, lines, left_out = [], [], False
    for device, key in (("cpu", "ceilings"), ("cuda", "gpu_ceilings")):
        ceilings: Row = defaultdict(dict, record.get(key) or {})
        cached = ceilings["cached"].items()
        ceilings["cached"] = {f"cache, {rate(int(size), 'B')}": value for size, value in cached}
        counted = [row for row in rows if row["speed"] and row["device"] == device]
        # Loops lie decades below: with them all others would share the uppermost quarter.
        compared = [row for row in counted if row["implementation"] not in LOOPS]
        left_out |= len(compared) < len(counted) and bool(compared)
        counted = compared or counted
        for operation in dict.fromkeys(row["operation"] for row in counted):
            of_one = [row for row in counted if row["operation"] == operation]
            title = f"{operation}, {DEVICES[device]}"
            charts.append(roofline(title, of_one, counted, ceilings, styles))
        for kind, unit in (("bytes_per_s", "B/s"), ("cached", "B/s"), ("operations_per_s", "op/s")):
            found = ceilings[kind].items()
            words = "; ".join(f"{name}: {rate(value, unit)}" for name, value in found)
            lines += [f"Measured on the {DEVICES[device]}: {words}"] if words else []
        lacking = ceilings["left_out"].items()
        for name, why in lacking:
            reason = why.removeprefix("RuntimeError: ")  # ours, which says it all
            lines.append(f"Not measured on the {DEVICES[device]}: {name}, {reason}")
    words = (
        "Speed against operations a byte, both logarithmic. Each mark is a timed row; a name is "
        "led to the fastest of its rows. Under the slope memory is the limit, under the flat roof "
        "arithmetic; dashed lines are the ceilings of caches and of other kinds of numbers."
    )
    if left_out:
        words += " Loops are left out: they lie far below."
    if not charts:
        words = "This record has no counts of bytes and operations."
    elif not lines:
        words += " This run did not measure the machine's ceilings."
    return _charts("Roofline", words, charts, lines)


def _scaling_section(rows: list[Row], break_even: list[Row], styles: dict[str, int]) -> Element:
    said = {row["reason"] for row in rows}  # below the ladder
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["timed"] and row["size"]:
            groups.setdefault((row["group"], row["operation"]), []).append(row)
    charts = []
    for (group, operation), of_chart in groups.items():
        sizes = [b["samples"] for b in break_even if b["operation"] == operation and b["samples"]]
        charts.append(scaling(of_chart, styles, sizes if group == "samples" else []))
    lines = []
    for found in break_even:
        slow, fast = found["between"]
        reason = "not known here" if found["reason"] in said - {None} else found["reason"]
        words = f"{slow} and {fast}, {reason or 'not among the sizes measured'}"
        if found["samples"]:
            words = f"{fast} is faster than {slow} from about {found['samples']:,.0f} samples on"
            words += f" ({found['reason']})" if found["reason"] else ""
        lines.append(f"Break-even of {found['operation']}: {words}")
    words = "Time against size, both logarithmic; vertical lines span the 20th to 80th percentile."
    words = words if charts else "This run did not vary any size."
    return _charts("Scaling", words, charts, lines)


# ------------------------------------------------------------------------------------ table


def _table_section(rows: list[Row]) -> Element:
    columns = [name for name in COLUMNS if any(cell(row, name)[0] for row in rows)]
    body = []
    for row in rows:
        notes = [row["reason"]] if row["reason"] else []
        if row["extrapolated"]:
            notes.append(f"extrapolated from {row['measured_samples']} samples")
        first = tag("td", row["case"]), tag("th", row["implementation"], scope="row")
        cells = [cell(row, name) for name in columns]
        numbers = [tag("td", text, class_="number", data_value=value) for text, value in cells]
        note = "; ".join(notes)
        is_long = len(note) > NOTE
        last = tag(
            "td", "see below the ladder" if is_long else note, title=note if is_long else None
        )
        body.append((first, tag("td", row["status"]), numbers, last))
    head = (
        [tag("th", name, scope="col") for name in ("case", "implementation", "status")],
        [tag("th", name, scope="col", class_="number") for name in columns],
        tag("th", "note", scope="col"),
    )

    lines = tag("thead", tag("tr", head)), tag("tbody", [tag("tr", cells) for cells in body])
    table = tag("table", lines, id="table")

    def choice(key: str) -> Element:
        names = dict.fromkeys(row[key] for row in rows)
        options = tag("option", "all", value=""), [tag("option", name) for name in names]
        return tag("label", key.capitalize(), tag("select", options))

    choices = [
        tag("label", "Text", tag("input", type="search")),
        *map(choice, ("case", "implementation")),
        tag("output", id="shown", role="status"),
    ]
    return _section(
        "Rows",
        "Everything that was run. Cold start is the first call, with compilation; transfer is what "
        "handing the arrays to the device takes. Neither is part of the median.",
        tag("form", choices, id="controls", hidden=""),
        tag("div", table, class_="box", tabindex=0, role="region", aria_label="All rows"),
    )


# ------------------------------------------------------------------------------ environment


def _in_words(value: Any, key: str = "") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_in_words(v, k)}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(map(_in_words, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if key.endswith("_bytes"):
        return rate(value, "B")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _environment_section(record: dict[str, Any]) -> Element:
    facts = {key: record[key] for key in ("recorded", "dataset") if record.get(key)}
    facts |= record["environment"] | (record.get("settings") or {})
    pairs = [
        (tag("dt", key.removesuffix("_bytes").replace("_", " ")), tag("dd", _in_words(value, key)))
        for key, value in facts.items()
    ]
    return _section("Environment", "Machine, versions and settings.", tag("dl", pairs))


def _reproduce_section(command: str | None) -> Element:
    return _section(
        "Reproduce",
        "The same run again:" if command else "The record does not name its command.",
        tag("pre", tag("code", command, id="command")) if command else None,
        tag("button", "Copy", type="button", id="copy", hidden="") if command else None,
        tag("p", tag("a", "Download the record", id="download", download="bench.json", hidden="")),
    )
