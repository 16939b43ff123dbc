import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import browser
import pytest

from gpuclf.bench.report.page import render_page
from gpuclf.files import write_whole

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
PURE = "pure Python loops"
LIBRARIES = {PURE: "python", "naive loops": "python", "gpuclf on CuPy": "cupy"}
EVIL = "</script><script>hacked = 1</script><img src=x onerror=hacked=1> & \"'"


def row(implementation, median, case="softmax, 100 samples", **fields):
    """A row of a record; its floor is 1.00 ms by memory at 10 operations a byte."""
    timed = median is not None
    return {
        "case": case,
        "group": "ladder",
        "operation": "softmax",
        "implementation": implementation,
        "array_library": LIBRARIES.get(implementation, "numpy"),
        "samples": 100,
        "measured_samples": 100,
        "extrapolated": False,
        "classes": 10,
        "hidden_units": None,
        "models": 1,
        "status": "timed" if timed else "unavailable",
        "reason": None if timed else "no CUDA device",
        "errors": {"loss": 1e-7, "gradient": 3e-7},
        "cold_s": 0.5,
        "transfer_s": None,
        "median_s": median,
        "p20_s": median and 0.9 * median,
        "p80_s": median and 1.2 * median,
        "n": 7 if timed else 0,
        "times_s": [median] * 7 if timed else [],
        "device_s": None,
        "queued_s": None,
        "bytes": 10**7,
        "operations": 10**8,
        "floor_s": 1e-3,
        "limited_by": "memory",
        "share_of_floor": median and 1e-3 / median,
    } | fields


def ladder_rows():
    return [
        row(PURE, 20.0, extrapolated=True, measured_samples=4),
        row("naive loops", 0.2, extrapolated=True, measured_samples=64),
        row("textbook NumPy", 0.02),
        row("gpuclf on NumPy", 0.002, p20_s=0.0019, p80_s=0.0023),
        row("gpuclf on CuPy", None),
        row("scikit-learn", None, status="rejected", reason="faster than the machine"),
    ]


def scaling_rows():
    fields = {
        "samples": "samples",
        "batch size": "samples",
        "hidden units": "hidden_units",
        "classes": "classes",
        "models": "models",
    }
    return [
        row(name, base * size, f"{group} {size}", group=group, **{fields[group]: size})
        for group in fields
        for size in (10, 100, 1000)
        for name, base in (("textbook NumPy", 2e-5), ("gpuclf on NumPy", 1e-5))
    ]


def record(rows=None, **changes):
    return {
        "version": 3,
        "command": "gpuclf bench --data cifar10",
        "recorded": "2026-01-02T03:04:05+00:00",
        "dataset": {"name": "CIFAR-10", "train_samples": 50000},
        "settings": {"dtype": "float32", "seed": 0},
        "environment": {
            "cpu": "Some CPU",
            "threads": 2,
            "memory_bytes": 16 * 10**9,
            "blas": [{"library": "openblas", "version": "0.3", "architecture": None}],
            "gpu": {"usable": False, "reason": "CuPy is not installed"},
            "versions": {"gpuclf": "0.1.0", "numpy": "2.4.6"},
            "commit": "abc1234",
        },
        "ceilings": {
            "bytes_per_s": {"read": 1e10, "copy": 8e9, "upload pinned": 9e11},
            "operations_per_s": {"float32": 4e11, "int8": 8e11},
            "cached": {"524288": 4e10},
            "left_out": {"float16": "no such unit"},
        },
        "rows": ladder_rows() + scaling_rows() if rows is None else rows,
        "break_even": [
            {
                "operation": "softmax",
                "between": ["gpuclf on NumPy", "gpuclf on CuPy"],
                "samples": 40,
                "reason": None,
            },
            {
                "operation": "k-NN l2",
                "between": ["gpuclf on NumPy", "gpuclf on CuPy"],
                "samples": None,
                "reason": "no CUDA device",
            },
        ],
        "unfinished": None,
    } | changes


class Node:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def __getitem__(self, attribute):
        return self.attributes[attribute]

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag=None, class_=None):
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and (class_ is None or class_ in child.classes):
                    yield child
                yield from child.all(tag, class_)

    def one(self, tag=None, class_=None, **attributes):
        found = [
            node
            for node in self.all(tag, class_)
            if all(node.attributes.get(k) == v for k, v in attributes.items())
        ]
        assert len(found) == 1, f"{len(found)} of {tag} {class_} {attributes}"
        return found[0]


class Reader(HTMLParser):
    """A browser's view of the page, but strict about what is closed when."""

    VOID = ("meta", "link", "input")

    def __init__(self, page):
        super().__init__()
        self.open = [Node("", [])]
        self.feed(page)
        self.close()
        assert len(self.open) == 1
        self.root = self.open[0]

    def handle_starttag(self, tag, attributes):
        node = Node(tag, attributes)
        self.open[-1].children.append(node)
        if tag not in self.VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(content):
    return Reader(render_page(content)).root


def lines(table):
    return [[c.text for c in tr.children] for tr in table.one("tbody").all("tr")]


def figure(page, title):
    (found,) = [f for f in page.all("figure") if f.one("h3").text == title]
    return found


def percent(node, attribute):
    assert node[attribute].endswith("%")
    return float(node[attribute][:-1])


def marks(picture):
    return [s for s in picture.all("svg") if s.attributes.get("overflow") == "visible"]


# ----------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_that_may_load_nothing():
    page = read(record())
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none';")
    script = [s for s in page.all("script") if "type" not in s.attributes]
    for kind, (element,) in (("script", script), ("style", list(page.all("style")))):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    for node in page.all():
        assert not [name for name in node.attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href"):
            assert re.match(r"#|data:", node.attributes.get(name, "#"))
    assert "url(" not in page.one("style").text


def test_its_links_lead_to_its_sections():
    page = read(record())
    targets = [a["href"][1:] for a in page.one("nav").all("a")]
    assert targets == [s["id"] for s in page.all("section")]
    assert targets == ["ladder", "roofline", "scaling", "rows", "environment", "reproduce"]


def test_the_summary_says_what_how_fast_how_near_and_why_no_gpu():
    words = read(record()).one(class_="summary").text
    for said in (
        "gpuclf on NumPy does softmax, 100 samples, in 2.00 ms: 10.0 times faster than "
        "textbook NumPy and 100 times faster than the course's naive loops.",
        "1.90 ms..2.30 ms, n = 7",
        "The time of the course's naive loops is extrapolated from 64 samples.",
        "50% of the speed possible",
        "No row ran on a GPU: CuPy is not installed.",
        "34 of 36 rows were timed on CIFAR-10; Some CPU, 2 threads.",
    ):
        assert said in words


def test_the_headline_falls_back_to_the_loops_that_there_are():
    words = read(record([r for r in ladder_rows() if r["implementation"] != "naive loops"])).text
    assert "and 10,000 times faster than pure Python loops." in words
    assert "The time of pure Python loops is extrapolated from 4 samples." in words
    words = read(record([row("gpuclf on NumPy", 0.002), row("naive loops", 0.2)])).text
    assert "in 2.00 ms: 100 times faster than the course's naive loops." in words


def test_what_was_called_naive_before_is_called_pure_python():
    page = read(record([row("naive loops", 20.0), row("gpuclf on NumPy", 0.002)], version=2))
    assert "naive" not in page.one("main").text
    assert "10,000 times faster than pure Python loops" in page.text


def test_the_summary_says_slower_where_it_is_and_names_the_gpu():
    rows = [
        row("textbook NumPy", 0.01),
        row("gpuclf on NumPy", 0.02),
        row("gpuclf on CuPy", 0.0001),
        row("textbook NumPy", 0.03, "other"),
        row("gpuclf on NumPy", 0.01, "other"),
    ]
    environment = {"gpu": {"usable": True, "reason": None, "name": "Some GPU"}}
    words = read(record(rows, environment=environment)).one(class_="summary").text
    assert "2.00 times slower than textbook NumPy" in words
    assert "Over 2 cases" in words
    assert "from 2.00 times slower to 3.00 times faster" in words
    assert (
        "Some GPU: gpuclf on CuPy does softmax, 100 samples, in 100 µs, 200 times faster" in words
    )


def test_the_record_itself_is_in_the_page_and_unchanged():
    content = record([row(EVIL, 0.5)], command=EVIL)
    before = copy.deepcopy(content)
    assert json.loads(read(content).one("script", id="record").text) == before
    assert content == before


def test_what_the_record_says_is_text_everywhere():
    rows = [row(EVIL, t, EVIL, group=g) for t, g in ((0.5, "ladder"), (0.25, "samples"))]
    rows += [row(EVIL, None, EVIL, reason=EVIL, operation=EVIL, status=EVIL)]
    rows += [row(EVIL, 1.0, EVIL, group=EVIL, operation=EVIL, limited_by=EVIL)]
    evil = {EVIL: EVIL, "cpu": EVIL, "gpu": {"name": EVIL, "reason": EVIL}, "blas": [{EVIL: EVIL}]}
    content = record(
        rows,
        command=EVIL,
        dataset=EVIL,
        settings={EVIL: EVIL},
        environment=evil,
        unfinished=EVIL,
        ceilings={
            "bytes_per_s": {EVIL: 1e10},
            "operations_per_s": {EVIL: 4e11},
            "left_out": {EVIL: EVIL},
        },
        break_even=[{"operation": EVIL, "between": [EVIL, EVIL], "samples": None, "reason": EVIL}],
    )
    page = read(content)
    assert len(list(page.all("script"))) == 2
    assert not list(page.all("img"))
    assert page.one("code").text == EVIL
    assert lines(page.one("table", id="table"))[0][:2] == [EVIL, EVIL]


# ----------------------------------------------------------------------------------- charts


def test_the_ladder_is_logarithmic_and_marks_the_floor():
    chart = figure(read(record(ladder_rows())), "softmax, 100 samples")
    pure, naive, textbook, own = (percent(bar, "width") for bar in chart.all("rect"))
    assert own < textbook < naive < pure <= 100
    assert pure - textbook == pytest.approx(3 * (textbook - own), abs=0.1)  # 1000 and 10 times
    assert naive - textbook == pytest.approx(textbook - own, abs=0.1)
    decade = textbook - own
    floors = [line for line in chart.all("line", "floor") if "thin" not in line.classes]
    expected = own - decade * math.log10(2)
    assert [percent(line, "x1") for line in floors] == pytest.approx([expected] * 8, abs=0.1)
    whiskers = [w for w in chart.all("line", "halo") if "whisker" in w.classes]
    assert percent(whiskers[3], "x2") == pytest.approx(own + decade * math.log10(1.15), abs=0.1)
    texts = [text.text for text in chart.all("text")]
    drawn = {"floor 1.00 ms", "≈ 20.0 s1/1,000", "≈ 200 ms0.10x", "2.00 ms10.0x"}
    assert drawn | {"rejected"} <= set(texts)
    assert "unavailable" not in texts


def test_lines_to_the_floors_stay_below_all_names():
    chart = figure(read(record(ladder_rows())), "softmax, 100 samples")
    names = [float(text["y"]) for text in chart.all("text", "name")]
    led = [line for line in chart.all("line", "floor") if "thin" in line.classes]
    assert len(led) == 1
    assert float(led[0]["y1"]) > max(names)


def test_what_could_not_run_is_said_once():
    reason = "backend 'cupy' cannot be used: CuPy is not installed. To use it, install it."
    rows = [row("textbook NumPy", 0.02), row("gpuclf on NumPy", 0.01)]
    rows += [row(f"{n} on CuPy", None, reason=reason, status="unavailable") for n in "ab"]
    break_even = [
        {"operation": "softmax", "between": ["a", "b"], "samples": None, "reason": reason}
    ]
    page = read(record(rows, break_even=break_even))
    assert page.one("main").text.count(reason) == 1
    assert "a on CuPy; b on CuPy (unavailable): " in page.one("main").text


def test_loops_do_not_stretch_the_roofline():
    page = read(record())
    chart = figure(page, "softmax, CPU")
    names = {text.text for text in chart.all("text", "name")}
    assert names
    assert not [name for name in names if "loops" in name]
    assert "Loops are left out" in page.one("section", id="roofline").text
    alone = read(record([row("naive loops", 0.2)]))
    assert "Loops are left out" not in alone.one("section", id="roofline").text


def test_points_of_the_roofline_lie_where_the_roof_says():
    # At the rate of the memory ceiling a point is on the slope, at that of arithmetic on the flat.
    rows = [
        row("on the slope", 1e-3),
        row("on the flat", 1e-3, operations=8 * 10**8, bytes=10**6),
        row("below", 1e-2),
        row("higher", 1.0, operations=10**11, operation="another"),
    ]
    chart = figure(read(record(rows)), "softmax, CPU")
    slope, flat = chart.all("line", "roof")
    point = {m.text.partition(":")[0]: (percent(m, "x"), float(m["y"])) for m in marks(chart)}
    assert len(point) == 3

    def off(line, at):
        (x1, x2), (y1, y2) = ([f(line, f"{k}{i}") for i in "12"] for k, f in AXES)
        return at[1] - (y1 + (y2 - y1) * (at[0] - x1) / (x2 - x1))

    assert off(slope, point["on the slope"]) == pytest.approx(0, abs=0.3)
    assert off(flat, point["on the flat"]) == pytest.approx(0, abs=0.3)
    assert percent(slope, "x2") == pytest.approx(percent(flat, "x1"), abs=0.02)
    assert off(slope, point["below"]) > 10
    lesser = [line.text for line in chart.all("line", "lower")]
    assert lesser == ["copy 8.00 GB/s", "cache, 524 kB 40.0 GB/s", "float32 400 Gop/s"]
    assert percent(flat, "x1") < percent(flat, "x2") - 1
    texts = [text.text for text in chart.all("text")]
    assert {"memory 10.0 GB/s", "arithmetic 800 Gop/s"} <= set(texts)


AXES = (("x", percent), ("y", lambda node, name: float(node[name])))


def test_a_gpu_has_a_roof_of_its_own():
    roofs = {"bytes_per_s": {"read": 3e12}, "operations_per_s": {"float16": 9e14}}
    rows = [row("gpuclf on NumPy", 1e-3), row("gpuclf on CuPy", 1e-5)]
    page = read(record(rows, gpu_ceilings=roofs))
    for device, name, roof in (("CPU", "NumPy", "10.0 GB/s"), ("GPU", "CuPy", "3.00 TB/s")):
        chart = figure(page, f"softmax, {device}")
        assert [m.one("title").text.partition(":")[0] for m in marks(chart)] == [
            f"gpuclf on {name}"
        ]
        assert f"memory {roof}" in [text.text for text in chart.all("text")]


def test_a_line_of_a_scaling_chart_is_straight_where_time_is_proportional():
    chart = figure(read(record()), "softmax: time against samples")
    x, y = zip(*((percent(m, "x"), float(m["y"])) for m in marks(chart)), strict=True)
    textbook, own = slice(0, None, 2), slice(1, None, 2)
    for of_one in (textbook, own):
        assert x[of_one][1] - x[of_one][0] == pytest.approx(x[of_one][2] - x[of_one][1], abs=0.02)
        assert y[of_one][1] - y[of_one][0] == pytest.approx(y[of_one][2] - y[of_one][1], abs=0.2)
    assert y[0] < y[1]  # more time is higher up
    assert "break-even 40" in [text.text for text in chart.all("text")]
    at = [percent(line, "x1") for line in chart.all("line", "thin")]
    assert at == [pytest.approx(x[0] + (x[2] - x[0]) * math.log10(4), abs=0.02)]


def test_models_share_their_time():
    chart = figure(read(record()), "softmax: time a model against models")
    heights = [float(mark["y"]) for mark in marks(chart)]
    assert heights[::2] == [heights[0]] * 3


def test_what_a_chart_draws_is_a_number_of_the_table_too():
    table = read(record()).one("table", id="table")
    head = [th.text for th in table.one("thead").all("th")]
    rows = [dict(zip(head, line, strict=True)) for line in lines(table)]
    of_case = {row["implementation"]: row for row in rows if row["case"] == rows[0]["case"]}
    assert of_case["textbook NumPy"]["operations a byte"] == "10.0"
    assert of_case["textbook NumPy"]["speed"] == "5.00 Gop/s"
    assert of_case["gpuclf on NumPy"]["share of floor"] == "50%"
    sizes = [row for row in rows if row["size"]]
    assert {row["size"] for row in sizes} > {"10"}
    assert {row["median a model"] for row in sizes} == {"", "10.0 µs", "20.0 µs"}


def test_every_chart_is_a_picture_with_a_name_and_a_description():
    pictures = [s for s in read(record()).all("svg") if "role" in s.attributes]
    assert len(pictures) == 1 + 1 + 5
    for picture in pictures:
        assert picture["role"] == "img"
        name, description = picture.children[:2]
        assert (name.tag, description.tag) == ("title", "desc")
        assert name.text
    said = pictures[0].one("desc").text
    assert "Fastest: gpuclf on NumPy, 2.00 ms. Slowest: pure Python loops, 20.0 s." in said


def test_names_beside_a_chart_keep_their_distance():
    rows = [row(f"implementation number {i}", 1.3e-4 * 1.001**i) for i in range(10)]
    chart = figure(read(record(rows)), "softmax, CPU")
    heights = sorted(float(text["y"]) for text in chart.all("text", "name"))
    assert len(heights) == 20
    assert heights[0] > 0
    assert min(b - a for a, b in pairwise(heights)) >= 12


def test_implementations_of_one_colour_differ_in_shape():
    rows = [row(f"number {i}", 1e-3 * 2**i) for i in range(20)]
    chart = figure(read(record(rows)), "softmax, CPU")
    paths = [next(mark.all("path")) for mark in marks(chart)]
    assert len({(path["class"], path["d"]) for path in paths}) == 20


# ------------------------------------------------------------------------------------ table


def test_the_table_has_every_row_and_what_it_is_sorted_by():
    table = read(record()).one("table", id="table")
    head = [th.text for th in table.one("thead").all("th")]
    assert head[:5] == ["case", "implementation", "status", "median", "p20..p80"]
    assert "device time" not in head
    assert len(lines(table)) == 36
    body = list(table.one("tbody").all("tr"))
    cells = dict(zip(head, body[3].children, strict=True))
    assert (cells["median"].text, cells["median"]["data-value"]) == ("2.00 ms", "0.002")
    assert (cells["vs textbook"].text, cells["vs textbook"]["data-value"]) == ("10.0x", "10.0")
    assert cells["cold start"].text == "500 ms"
    assert cells["difference"].text == "3.0e-07"
    assert cells["share of floor"].text == "50%"
    unavailable = dict(zip(head, body[4].children, strict=True))
    assert unavailable["median"].text == ""
    assert "data-value" not in unavailable["median"].attributes
    assert (unavailable["status"].text, unavailable["note"].text) == (
        "unavailable",
        "no CUDA device",
    )
    assert body[0].children[-1].text == "extrapolated from 4 samples"


def test_clocks_of_a_gpu_have_columns_where_they_were_read():
    events = {"median": 3e-4, "p20": 2e-4, "p80": 4e-4, "n": 9, "samples": []}
    host = events | {"median": 7e-5}
    rows = [row("gpuclf on CuPy", 5e-4, device_s=events, host_s=host, transfer_s=0.25)]
    (line,) = lines(read(record(rows)).one("table", id="table"))
    assert {"300 µs", "500 µs", "250 ms", "70.0 µs"} <= set(line)


def test_environment_and_command_are_told():
    page = read(record())
    facts = dict(zip(*([n.text for n in page.all(tag)] for tag in ("dt", "dd")), strict=True))
    assert facts["cpu"] == "Some CPU"
    assert facts["memory"] == "16.0 GB"
    assert facts["blas"] == "library openblas, version 0.3, architecture not known"
    assert facts["commit"] == "abc1234"
    assert facts["versions"] == "gpuclf 0.1.0, numpy 2.4.6"
    assert page.one("code", id="command").text == "gpuclf bench --data cifar10"


# --------------------------------------------------------------------------------- odd records

OF_FIRST_VERSION = (
    *("operation", "implementation", "array_library", "stored", "dtype", "samples"),
    *("measured_samples", "extrapolated", "median_s", "p20_s", "p80_s", "times_s"),
)
# With one rung of loops, which later records call pure Python loops.
LADDER = json.loads((RESULTS / "ladder_intel_amx.json").read_text())
FIRST_VERSION = {name: LADDER[name] for name in ("dataset", "settings", "environment")} | {
    "rows": [
        {name: row[name] for name in OF_FIRST_VERSION} | {"unavailable": row["reason"]}
        for row in LADDER["rows"]
        if row["group"] == "ladder"
    ]
}
OF_SOFTMAX = {
    row["implementation"].replace("naive loops", PURE): row["median_s"]
    for row in LADDER["rows"]
    if row["case"] == LADDER["rows"][0]["case"]
}
FASTER = OF_SOFTMAX[PURE] / OF_SOFTMAX["gpuclf on NumPy, uint8"]
ODD = {
    "no rows": record([]),
    "one row": record([row("gpuclf on NumPy", 0.5)]),
    "only unavailable rows": record([row("gpuclf on CuPy", None), row(PURE, None)]),
    "no ceilings": record(ceilings=None),
    "no counts": record([row("gpuclf on NumPy", 0.5, bytes=None, operations=None, floor_s=None)]),
    "no percentiles": record([row("gpuclf on NumPy", 0.5, p20_s=None, p80_s=None)]),
    "memory's ceiling only": record(ceilings={"bytes_per_s": {"read": 1e10}}),
    "arithmetic's ceiling only": record(ceilings={"operations_per_s": {"float32": 1e10}}),
    "no number": record([row("gpuclf on NumPy", math.nan), row("naive loops", math.inf)]),
    "wrong results": record(
        [row("gpuclf on NumPy", None, status="wrong", errors={"loss": math.nan})]
    ),
    "huge ratios": record([row("naive loops", 1e6), row("gpuclf on NumPy", 1e-9)]),
    "equal sizes": record([row("gpuclf on NumPy", 1.0, group="samples")]),
    "no surroundings": {"rows": ladder_rows()},
    "half a character": record([row("\udcff", 0.5)]),
    "first version": FIRST_VERSION,
    "first version, peers": json.loads((RESULTS / "cpu_limit.json").read_text()),
}


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("kind", ODD)
def test_records_of_every_kind_make_a_page(kind, tmp_path):
    write_whole(tmp_path / "report.html", render_page(ODD[kind]))
    page = Reader((tmp_path / "report.html").read_text("utf-8")).root
    rows = ODD[kind]["rows"]
    assert len(lines(page.one("table", id="table"))) == len(rows)
    numbers = [
        a for n in page.all() if n.tag in ("line", "rect", "svg") for a in n.attributes.values()
    ]
    assert not [a for a in numbers if "nan" in a or "inf" in a]
    cases = {
        r.get("case") or f"{r['operation']}, {r['samples']:,} samples"
        for r in rows
        if r.get("group", "ladder") == "ladder"
    }
    titles = [f.one("h3").text for f in page.one("section", id="ladder").all("figure")]
    assert set(titles) == cases


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("only unavailable rows", f"gpuclf on CuPy; {PURE} (unavailable): no CUDA device"),
        ("only unavailable rows", "No row of this library was timed."),
        ("no ceilings", "This run did not measure the machine's ceilings."),
        ("no counts", "This record has no counts of bytes and operations."),
        ("no surroundings", "This run did not vary any size."),
        ("huge ratios", "1,000,000,000,000,000 times faster"),
        ("no surroundings", "The record does not name its command."),
        ("first version", f"{FASTER:,.0f} times faster"),
    ],
)
def test_what_is_missing_is_said(kind, said):
    assert said in read(ODD[kind]).text


def test_an_unfinished_run_is_called_so():
    words = read(record(unfinished="interrupted after 3 of 12 cases")).text
    assert "This run was not finished: interrupted after 3 of 12 cases." in words
    assert "not finished" not in read(record()).text


def test_a_page_is_written_whole_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "report.html"
    for content in ("before", "after \udcff"):
        write_whole(path, content)
    assert path.read_text("utf-8") == "after ?"
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def window():
    reason = browser.missing()
    if reason:
        pytest.skip(reason)
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    evil = record([row(EVIL, 0.5, EVIL), row(EVIL, None, EVIL, reason=EVIL)], command=EVIL)
    pages = {"usual": record(), "evil": evil, "old": ODD["first version"], "empty": record([])}
    for name, content in pages.items():
        write_whole(folder / f"{name}.html", render_page(content))
    return {name: folder / f"{name}.html" for name in pages}


SPILLED = """
const spilled = [];
for (const figure of document.querySelectorAll("figure")) {
  const card = figure.getBoundingClientRect();
  const texts = [...figure.querySelectorAll("svg text")];
  const boxes = texts.map((text) => text.getBoundingClientRect());
  boxes.forEach((box, i) => {
    if (box.left < card.left || box.right > card.right || box.top < card.top)
      spilled.push(texts[i].textContent);
    boxes.slice(0, i).forEach((other, j) => {
      const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (across > 1 && down > 4) spilled.push(texts[j].textContent + " | " + texts[i].textContent);
    });
  });
}
return spilled;
"""


@pytest.mark.parametrize("name", ["usual", "evil", "old", "empty"])
def test_a_browser_finds_no_fault_and_asks_for_nothing(name, window, paths):
    window.open(paths[name])
    assert window.console() == []
    assert window.requests() in ([paths[name].as_uri()], [paths[name].as_uri(), "data:,"])
    assert window.run("return typeof hacked") == "undefined"
    read_here = Reader(paths[name].read_text("utf-8")).root.one("script", id="record").text
    assert window.run("return document.querySelector('#record').textContent") == read_here


@pytest.mark.parametrize("name", ["usual", "old"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_spills(name, width, window, paths):
    window.resize(width)
    window.open(paths[name])
    assert window.run("return document.documentElement.scrollWidth") <= width
    assert window.run("return document.querySelectorAll('svg[role=img]').length") >= 4
    assert window.run(SPILLED) == []


def test_the_table_of_a_real_record_is_whole_and_the_headline_short(window, tmp_path):
    record = Path(__file__).parents[1] / "benchmarks" / "results" / "ladder.json"
    page = tmp_path / "page.html"
    write_whole(page, render_page(json.loads(record.read_text("utf-8"))))
    window.resize(1280)
    window.open(page)
    wide = "const box = document.querySelector('.box'); return box.scrollWidth - box.clientWidth"
    assert window.run(wide) <= 0
    lines = """const p = document.querySelector(".summary p");
    return p.getBoundingClientRect().height / parseFloat(getComputedStyle(p).lineHeight)"""
    assert window.run(lines) < 2.5


def test_dark_and_light_are_readable(window, paths):
    window.open(paths["usual"])
    shades = {}
    for scheme in ("light", "dark"):
        window.prefer(scheme)
        paper, ink = (
            sum(map(int, re.findall(r"\d+", colour)[:3])) / 765
            for colour in window.run(
                "const style = getComputedStyle(document.body);"
                "return [style.backgroundColor, style.color]"
            )
        )
        shades[scheme] = paper, ink
    assert shades["light"][0] > 0.9 > 0.2 > shades["light"][1]
    assert shades["dark"][0] < 0.15 < 0.8 < shades["dark"][1]


COLUMN = """
const rows = [...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden);
return rows.map((row) => row.cells[arguments[0]].textContent);
"""
PRESS = """
const head = document.querySelectorAll("#table thead th")[arguments[0]];
head.querySelector("button").click();
return [...document.querySelectorAll("#table thead th")].map((th) => th.getAttribute("aria-sort"));
"""


def test_a_press_on_a_column_sorts_it(window, paths):
    window.open(paths["usual"])
    before = window.run(COLUMN, 3)
    assert before[:3] == ["20.0 s", "200 ms", "20.0 ms"]
    pressed = window.run(PRESS, 3)
    assert pressed[3] == "ascending"
    assert [p for p in pressed if p] == ["ascending"]
    rising = window.run(COLUMN, 3)
    assert (rising[0], rising[-3:]) == ("100 µs", ["20.0 s", "", ""])
    assert window.run(PRESS, 3)[3] == "descending"
    falling = window.run(COLUMN, 3)
    assert (falling[0], falling[-3:]) == ("20.0 s", ["100 µs", "", ""])  # no number stays last
    assert sorted(falling) == sorted(before)
    assert window.run(PRESS, 1)[1] == "ascending"
    names = window.run(COLUMN, 1)
    assert names == sorted(names)


FILTER = """
const [text, case_, implementation] = document.querySelectorAll("#controls input, select");
[text.value, case_.value, implementation.value] = arguments;
text.dispatchEvent(new Event("input", { bubbles: true }));
return document.querySelector("#shown").textContent;
"""


def test_the_table_is_filtered_by_text_case_and_implementation(window, paths):
    window.open(paths["usual"])
    assert window.run("return document.querySelector('#shown').role") == "status"
    assert window.run(FILTER, "", "", "") == "36 of 36 rows shown"
    assert window.run(FILTER, "textbook unavailable", "", "") == "0 of 36 rows shown"
    assert window.run(FILTER, "cuda  UNAVAILABLE", "", "") == "1 of 36 rows shown"
    assert window.run(COLUMN, 1) == ["gpuclf on CuPy"]
    assert window.run(FILTER, "", "softmax, 100 samples", "") == "6 of 36 rows shown"
    assert window.run(FILTER, "", "", "textbook NumPy") == "16 of 36 rows shown"
    assert window.run(FILTER, "", "softmax, 100 samples", "naive loops") == "1 of 36 rows shown"
    assert window.run(FILTER, "nowhere", "", "") == "0 of 36 rows shown"
    window.run(PRESS, 3)
    assert window.run(FILTER, "", "", "naive loops") == "1 of 36 rows shown"


def test_the_record_can_be_downloaded_and_the_command_copied(window, paths):
    window.open(paths["evil"])
    link = window.run("const a = document.querySelector('#download'); return [a.hidden, a.href]")
    assert link[0] is False
    assert link[1].startswith("blob:")
    assert window.run("return document.querySelector('#copy').hidden") is False
    window.run("document.querySelector('#copy').click()")
    selected = "return document.querySelector('#copy').textContent + getSelection()"
    for _ in range(50):
        if (found := window.run(selected)) != "Copy":
            break
    assert found in ("Copied", f"Copy{EVIL}")
