"""The charts of the benchmark's page, as SVG that needs no script.

Across, positions are percentages, so that a chart is as wide as its column; down, and in the text,
they are pixels, so that a phone shows letters of the same size as a desk. Labels of axes and lines
are written into the margins that the style sheet leaves.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any
from xml.etree.ElementTree import Element

from gpuclf.bench.report.table import format_number, format_ratio, format_share
from gpuclf.files import format_seconds

__all__ = ["COLUMNS", "Row", "cell", "duration", "ladder", "rate", "roofline", "scaling", "tag"]

Row = dict[str, Any]
Point = tuple[float, float]
Mark = tuple[str, Point, str]  # of which implementation, where, and what it says when pointed at
Styles = dict[str, int]  # a number for each implementation: its colour and shape

COLOURS = 8  # as many as the style sheet has
SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-5L4.6,3.6H-4.6z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0z",
)
PLOT_HEIGHT = 300
LINE = 13  # pixels from one line of small text to the next
BAR, TIMED_PITCH, OTHER_PITCH = 13, 42, 27


def tag(name: str, /, *children: Any, **attributes: Any) -> Element:
    """Make an element of elements, text (escaped when it is written), None and iterables of these.

    Underscores in attributes become hyphens, one at the end is dropped; None leaves one out.

    Examples
    --------
    >>> from xml.etree.ElementTree import tostring
    >>> tostring(tag("p", "1 < ", tag("b", "2"), class_="sum"), encoding="unicode")
    '<p class="sum">1 &lt; <b>2</b></p>'
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), str(value))
    _append(element, children)
    return element


def _append(element: Element, children: Iterable[Any]) -> None:
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif not isinstance(child, str):
            _append(element, child or ())
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child


# ---------------------------------------------------------------------------------- numbers


def duration(seconds: float) -> str:
    """Write seconds for people.

    Examples
    --------
    >>> duration(2.4e-5)
    '24.0 µs'
    """
    return format_seconds(seconds).replace(" us", " µs")


def rate(value: float, unit: str) -> str:
    """Write an amount with a fitting prefix.

    Examples
    --------
    >>> rate(2.73e10, "B/s")
    '27.3 GB/s'
    """
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{format_number(value / size)} {prefix}{unit}"
    return f"{format_number(value)} {unit}"


# What numeric columns are called, the field that they are sorted by, and how it is written.
COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "median": ("median_s", lambda row: duration(row["median_s"])),
    "p20..p80": ("p20_s", lambda row: f"{duration(row['p20_s'])}..{duration(row['p80_s'])}"),
    "n": ("n", lambda row: f"{row['n']:,}"),
    "vs textbook": ("versus", lambda row: format_ratio(row["versus"])),
    "floor": ("floor_s", lambda row: duration(row["floor_s"])),
    "share of floor": ("share_of_floor", lambda row: format_share(row["share_of_floor"])),
    "cold start": ("cold_s", lambda row: duration(row["cold_s"])),
    "transfer": ("transfer_s", lambda row: duration(row["transfer_s"])),
    "device time": ("device_median_s", lambda row: duration(row["device_median_s"])),
    "queued": ("queued_median_s", lambda row: duration(row["queued_median_s"])),
    "host time": ("host_median_s", lambda row: duration(row["host_median_s"])),
    "difference": ("error", lambda row: f"{row['error']:.1e}"),
    "operations a byte": ("intensity", lambda row: format_number(row["intensity"])),
    "speed": ("speed", lambda row: rate(row["speed"], "op/s")),
    "size": ("size", lambda row: f"{row['size']:,}"),
    "median a model": ("model_s", lambda row: duration(row["model_s"])),
}


def cell(row: Row, column: str) -> tuple[str, float | None]:
    """Return what a column says of a row, and the number to sort by; nothing where it has none."""
    key, write = COLUMNS[column]
    return (write(row), row[key]) if row[key] else ("", None)


class LogScale:
    """Positions of values from 0 to 1 on a logarithmic axis; bars begin at a power of ten."""

    def __init__(self, values: list[float], from_decade: bool = False) -> None:
        low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
        missing = max(0.0, 1 - (high - low)) / 2  # at least a decade, so that there are ticks
        self.low, self.high = low - missing, high + missing
        if from_decade:
            self.low = math.floor(self.low)

    def __call__(self, value: float) -> float:
        """Return the position."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Return round values within the axis, as many as there is room for."""
        found: list[float] = []
        for steps in ((1,), (1, 3), (1, 2, 5)):
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
            ticks = [tick for tick in ticks if -1e-9 <= self(tick) <= 1 + 1e-9]
            if len(ticks) <= most or not found:
                found = ticks[:: math.ceil(len(ticks) / most) or 1]
        return found


def _tick(value: float, unit: str) -> str:
    if unit != "s":
        return rate(value, unit).replace(".00", "").replace(".0", "") if unit else f"{value:,.12g}"
    for name, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.999 * size:
            return f"{value / size:,.0f} {name}"
    return f"{value * 1e9:.0f} ns"


# ----------------------------------------------------------------------------------- pieces


def _percent(position: float) -> str:
    return f"{100 * position:.2f}%"


def _text(label: str, x: float, y: float, class_: str, dx: float | None = None) -> Element:
    return tag("text", label, x=_percent(x), y=f"{y:.1f}", dx=dx, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str, tooltip: str = "") -> Element:
    ends = {"x1": _percent(x1), "y1": f"{y1:.1f}", "x2": _percent(x2), "y2": f"{y2:.1f}"}
    return tag("line", tag("title", tooltip) if tooltip else None, **ends, class_=class_)


def _mark(x: float, y: float, style: int, tooltip: str) -> Element:
    shape = SHAPES[(style + style // COLOURS) % len(SHAPES)]
    path = tag("path", tag("title", tooltip), d=shape, class_=f"mark {_colour(style)}")
    # An inner picture, because a path knows no percentages.
    return tag("svg", path, x=_percent(x), y=f"{y:.1f}", width=1, height=1, overflow="visible")


def _colour(style: int) -> str:
    return f"s{style % COLOURS}"


def _figure(title: str, class_: str, height: float, drawn: Any, rows: list[Row]) -> Element:
    """Put a title above what is drawn, and say in a sentence what it shows."""
    timed = [row for row in rows if row["timed"]]
    description = "No implementation has a time."
    if timed:
        ends = [f(timed, key=lambda row: row["median_s"]) for f in (min, max)]
        fastest, slowest = (f"{r['implementation']}, {duration(r['median_s'])}" for r in ends)
        description = f"{len(timed)} times. Fastest: {fastest}. Slowest: {slowest}."
    names = tag("title", title), tag("desc", f"{description} The numbers are in the table of rows.")
    picture = tag("svg", names, drawn, role="img", class_=class_, height=f"{height:.0f}")
    return tag("figure", tag("figcaption", tag("h3", title)), picture)


def _axes(x: LogScale, y: LogScale, y_unit: str, x_name: str) -> list[Element]:
    drawn = [_text(x_name, 0.5, PLOT_HEIGHT + 33, "tick middle")]
    for tick in y.ticks(6):
        at = PLOT_HEIGHT * (1 - y(tick))
        drawn.append(_line(0, at, 1, at, "grid"))
        drawn.append(_text(_tick(tick, y_unit), 0, at + 4, "tick end", -6))
    for tick in x.ticks(3):
        drawn.append(_line(x(tick), 0, x(tick), PLOT_HEIGHT, "grid"))
        drawn.append(_text(_tick(tick, ""), x(tick), PLOT_HEIGHT + 16, "tick middle"))
    return drawn


def _labels(points: dict[str, Point], styles: Styles) -> list[Element]:
    """Write names into the right margin, each led to from its point and clear of the others."""
    names = sorted(points, key=lambda name: points[name][1])
    wrapped = {name: textwrap.wrap(name, 16, max_lines=2, placeholder="…") for name in names}
    tops: list[float] = []
    for name in names:
        least = tops[-1] + LINE * len(wrapped[names[len(tops) - 1]]) + 3 if tops else 3
        tops.append(max(least, points[name][1] - LINE * len(wrapped[name]) / 2))
    bottom = PLOT_HEIGHT + 33.0
    for i in reversed(range(len(names))):
        bottom = tops[i] = min(tops[i], bottom - LINE * len(wrapped[names[i]]) - 3)
    drawn = []
    for name, top in zip(names, tops, strict=True):
        middle = top + LINE * len(wrapped[name]) / 2
        drawn.append(_line(*points[name], 1, middle, f"leader {_colour(styles[name])}"))
        for i, words in enumerate(wrapped[name]):
            drawn.append(_text(words, 1, top + LINE * (i + 0.85), "name", 5))
    return drawn


def _plot(title: str, drawn: Any, marks: list[Mark], styles: Styles, rows: list[Row]) -> Element:
    """Put marks above what is drawn, and name each implementation at its last one."""
    above = [_mark(*at, styles[name], words) for name, at, words in marks]
    above += _labels({name: at for name, at, _ in marks}, styles)
    return _figure(title, "plot", PLOT_HEIGHT + 40, (drawn, above), rows)


# ----------------------------------------------------------------------------------- charts


def ladder(rows: list[Row], styles: Styles) -> Element:
    """Draw the rows of one case as bars: median, p20 to p80, and each row's floor."""
    timed = [row for row in rows if row["timed"]]
    keys = ("median_s", "p20_s", "p80_s", "floor_s")
    scale = LogScale([row[k] for row in timed for k in keys if row[k]] or [1e-3], from_decade=True)
    bars: list[Element] = []
    floors: dict[str, float] = {}  # by label: position
    y = 0.0
    for row in rows:
        if row["status"] == "unavailable":
            continue  # said once, below all charts
        name = row["implementation"]
        bars.append(_text(textwrap.shorten(name, 24, placeholder="…"), 0, y + 15, "name"))
        if not row["timed"]:
            bars.append(_text(row["status"], 1, y + 15, "end muted"))
            y += OTHER_PITCH
            continue
        words = ("≈ " if row["extrapolated"] else "") + cell(row, "median")[0]
        value = _text(words, 1, y + 15, "value end")
        _append(value, [tag("tspan", cell(row, "vs textbook")[0], dx=7, class_="muted")])
        tooltip = tag("title", f"{name}: {words}, {cell(row, 'p20..p80')[0]}")
        size = {"y": y + 21, "width": _percent(scale(row["median_s"])), "height": BAR}
        bars += [value, tag("rect", tooltip, **size, class_=f"bar {_colour(styles[name])}")]
        middle = y + 21 + BAR / 2
        if row["p20_s"]:
            low, high = scale(row["p20_s"]), scale(row["p80_s"])
            bars += [_line(low, middle, high, middle, f"whisker {c}") for c in ("halo", "")]
            bars += [_line(x, middle - 4, x, middle + 4, "whisker") for x in (low, high)]
        if row["floor_s"]:
            x = scale(row["floor_s"])
            floors[f"floor {duration(row['floor_s'])}"] = x
            bars += [_line(x, y + 18, x, y + 24 + BAR, f"floor {c}") for c in ("halo", "")]
        y += TIMED_PITCH
    behind: list[Element] = []
    for tick in scale.ticks(4) if timed else ():
        at = scale(tick)
        behind.append(_line(at, 18, at, y + 2, "grid"))
        behind.append(_text(_tick(tick, "s"), at, y + 16, "tick middle" if at > 0.02 else "tick"))
    height = y + (20 if timed else 0)
    for label, x in floors.items():
        height += 15
        behind.append(_line(x, y + 1, x, height - 4, "floor thin"))  # below all names
        side = ("strong", 5) if x < 0.6 else ("strong end", -5)
        bars.append(_text(label, x, height, *side))
    return _figure(rows[0]["case"], "bars", height + 6, (behind, bars), rows)


def roofline(
    title: str, rows: list[Row], everything: list[Row], ceilings: Row, styles: Styles
) -> Element:
    """Draw one operation's rows under a device's ceilings; `everything` shares the axes.

    The ceilings are rates by name: "bytes_per_s", "cached" and "operations_per_s"; any may lack.
    """
    memory = {n: r for n, r in ceilings["bytes_per_s"].items() if not n.startswith("upload")}
    caches, arithmetic = ceilings["cached"], ceilings["operations_per_s"]
    bandwidth, top = max(memory.values(), default=0), max(arithmetic.values(), default=0)
    ridge = [top / bandwidth] if bandwidth and top else []
    x = LogScale([row["intensity"] for row in everything] + ridge)
    y = LogScale([row["speed"] for row in everything] + list(arithmetic.values()))
    drawn = _axes(x, y, "op/s", "operations a byte")

    def place(intensity: float, speed: float) -> Point:
        return x(intensity), PLOT_HEIGHT * (1 - y(speed))

    left, right = 10**x.low, 10**x.high

    def roof(ends: list[float], speeds: list[float], words: str, highest: bool) -> None:
        if ends[0] < ends[1]:
            points = map(place, ends, speeds)
            drawn.append(_line(*next(points), *next(points), "roof" if highest else "lower", words))

    for name, value in (memory | caches).items():
        ends = [max(left, 10**y.low / value), min(right, (top or 10**y.high) / value)]
        words = f"{name} {rate(value, 'B/s')}"
        roof(ends, [end * value for end in ends], words, value == bandwidth)
    for name, value in arithmetic.items():
        ends = [max(left, value / bandwidth) if bandwidth else left, right]
        roof(ends, [value, value], f"{name} {rate(value, 'op/s')}", value == top)
    if bandwidth:
        drawn.append(_text(f"memory {rate(bandwidth, 'B/s')}", 0, -6, "strong", -54))
    if top:
        drawn.append(_text(f"arithmetic {rate(top, 'op/s')}", 1, -6, "strong end", 110))
    marks = []
    for row in sorted(rows, key=lambda row: row["speed"]):
        words = f"{row['implementation']}: {row['case']}, {cell(row, 'speed')[0]}"
        marks.append((row["implementation"], place(row["intensity"], row["speed"]), words))
    return _plot(title, drawn, marks, styles, rows)


def scaling(rows: list[Row], styles: Styles, break_even: list[float]) -> Element:
    """Draw the time against a group's axis, one line for each implementation; mark break-even."""
    rows = sorted(rows, key=lambda row: row["size"])
    group = rows[0]["group"]
    shares = [row["models"] if group == "models" else 1 for row in rows]
    times = [
        [(row[f"{k}_s"] or row["median_s"]) / share for k in ("p20", "median", "p80")]
        for row, share in zip(rows, shares, strict=True)
    ]
    x = LogScale([row["size"] for row in rows] + break_even)
    y = LogScale([seconds for three in times for seconds in three])
    drawn = _axes(x, y, "s", group)
    for size in break_even:
        drawn.append(_line(x(size), 0, x(size), PLOT_HEIGHT, "floor thin"))
        drawn.append(_text(f"break-even {size:,.0f}", x(size), -6, "strong middle"))
    last: dict[str, Point] = {}
    marks: list[Mark] = []
    for row, three in zip(rows, times, strict=True):
        name, (low, middle, high) = row["implementation"], [PLOT_HEIGHT * (1 - y(s)) for s in three]
        at, curve = (x(row["size"]), middle), f"curve {_colour(styles[name])}"
        drawn.append(_line(at[0], low, at[0], high, curve))
        if name in last:
            drawn.append(_line(*last[name], *at, curve))
        last[name] = at
        marks.append((name, at, f"{name}, {row['size']:,} {group}: {duration(three[1])}"))
    what = "time a model" if group == "models" else "time"
    title = f"{rows[0]['operation']}: {what} against {group}"
    return _plot(title, drawn, marks, styles, rows)
