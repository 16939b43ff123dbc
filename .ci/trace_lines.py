"""Writes into docs/design.md on which line each stop of its traced call begins.

python .ci/trace_lines.py            rewrites the lines
python .ci/trace_lines.py --check    fails if they are not those of the sources
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
STOP = re.compile(r"^\| `([\w.]+)` \| `([\w/]+\.py)(?::\d+)?` \|", re.MULTILINE)


def line_of(name: str, path: Path) -> int:
    """Return the line of a function, class or method (``Class.method``)."""
    node = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(found for found in ast.walk(node) if getattr(found, "name", None) == part)
    return node.lineno


def with_lines(page: str) -> str:
    """Return the page with the lines of today's sources."""

    def of_stop(found: re.Match[str]) -> str:
        name, file = found.groups()
        return f"| `{name}` | `{file}:{line_of(name, ROOT / 'gpuclf' / file)}` |"

    return STOP.sub(of_stop, page)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        PAGE.write_text(with_lines(page), encoding="utf-8")
    elif page != with_lines(page):
        sys.exit("docs/design.md names other lines than the sources: python .ci/trace_lines.py")
