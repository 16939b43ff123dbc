"""What a record may hold: one schema, and the first key that is not as it says.

A record may come from anybody, and is read before minutes of measuring. So every value that the
tables, the page or the comparison use is looked at once, here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["check_entry", "check_record"]

STATUSES = ("timed", "unavailable", "wrong", "failed", "rejected")
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Kind:
    """A plain value: what it must be, in words, and whether one is."""

    words: str
    allows: Callable[[Any], bool]


@dataclass(frozen=True)
class Maybe:
    """Something, or null."""

    schema: Any


@dataclass(frozen=True)
class Each:
    """An object whose keys are anything, and whose values are all of a kind."""

    schema: Any


@dataclass(frozen=True)
class Fields:
    """An object: what its keys hold, which must be there, and whether others may."""

    schemas: dict[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    closed: bool = False


def _whole(least: int) -> Kind:
    words = f"a whole number of {least} or more"
    return Kind(words, lambda value: type(value) is int and least <= value <= LARGEST)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    # What is printed must not steer a terminal, nor be half a character.
    return type(value) is str and all(c.isprintable() or c in "\n\t" for c in value)


TEXT, FLAG = Kind("text", _is_text), Kind("true or false", lambda value: type(value) is bool)
NUMBER, COUNT = Kind("a number", _is_number), _whole(1)
AMOUNT = Kind(
    "a number, finite and 0 or more",
    lambda value: _is_number(value) and 0 <= value <= sys.float_info.max,
)
POSITIVE = Kind(
    "a number, finite and above 0",
    lambda value: _is_number(value) and 0 < value <= sys.float_info.max,
)
STATUS = Kind(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES)
DEVICE = Kind("cpu or cuda", lambda value: value in ("cpu", "cuda"))
QUANTILES = Maybe(
    Fields(
        {"median": POSITIVE, "p20": POSITIVE, "p80": POSITIVE, "n": COUNT, "samples": [POSITIVE]},
        needed=("median",),
    )
)
ROW = Fields(
    {
        **dict.fromkeys(("operation", "implementation", "case", "group"), TEXT),
        **dict.fromkeys(("array_library", "stored", "dtype", "precision"), TEXT),
        **dict.fromkeys(("samples", "measured_samples", "classes", "models"), COUNT),
        **dict.fromkeys(("limited_by", "reason", "unavailable"), Maybe(TEXT)),
        **dict.fromkeys(("floor_s", "share_of_floor"), Maybe(POSITIVE)),
        **dict.fromkeys(("median_s", "p20_s", "p80_s"), Maybe(POSITIVE)),
        **dict.fromkeys(("cold_s", "transfer_s", "bytes", "operations"), Maybe(AMOUNT)),
        **dict.fromkeys(("extrapolated", "uploads"), FLAG),
        **dict.fromkeys(("device_s", "host_s", "queued_s"), QUANTILES),
        **dict.fromkeys(("hidden_units", "calls_a_turn"), Maybe(COUNT)),
        "device": DEVICE,
        "status": STATUS,
        "n": _whole(0),
        "times_s": [POSITIVE],
        "errors": Maybe(Each(NUMBER)),
    },
    needed=("operation", "implementation", "samples", "times_s"),
)
RATES = Maybe(Each(POSITIVE))
CEILINGS = Maybe(
    Fields(
        {
            **dict.fromkeys(("bytes_per_s", "operations_per_s", "cached"), RATES),
            "left_out": Maybe(Each(TEXT)),
            "cpu_share": AMOUNT,
        }
    )
)
BLAS = Fields(
    {"library": TEXT, "version": TEXT, "architecture": Maybe(TEXT), "threads": COUNT},
    needed=("library", "version"),
)
GPU = Fields({"usable": FLAG, "name": Maybe(TEXT), "reason": Maybe(TEXT)})
ENVIRONMENT = Fields(
    {
        **dict.fromkeys(("python", "platform", "cpu", "commit"), Maybe(TEXT)),
        **dict.fromkeys(("cpu_count", "threads"), Maybe(COUNT)),
        **dict.fromkeys(("cpu_l2_bytes", "memory_bytes"), Maybe(AMOUNT)),
        "blas": Maybe([BLAS]),
        "gpu": Maybe(GPU),
        "versions": Maybe(Each(TEXT)),
    }
)
DATASET = Fields({"name": Maybe(TEXT), "source": Maybe(TEXT)})
BREAK_EVEN = Fields(
    {
        "operation": TEXT,
        "between": [TEXT],
        "samples": Maybe(POSITIVE),
        "reason": Maybe(TEXT),
    },
    needed=("operation", "between", "samples", "reason"),
)
RECORD = Fields(
    {
        "version": COUNT,
        **dict.fromkeys(("command", "recorded", "unfinished"), Maybe(TEXT)),
        "environment": Maybe(ENVIRONMENT),
        "settings": Maybe(Fields({"peers": FLAG})),
        **dict.fromkeys(("ceilings", "gpu_ceilings"), CEILINGS),
        "break_even": Maybe([BREAK_EVEN]),
        "by_turns": FLAG,
        "dataset": None,  # an object or, before, its name
        "rows": None,  # each is named by its number
    },
    closed=True,
)
# Of pytest-benchmark's entries, those of our cases.
ENTRY = Fields(
    {
        "group": TEXT,
        "extra_info": Fields(ROW.schemas, needed=("operation", "samples", "measured_samples")),
        "stats": Fields({"data": [POSITIVE]}, needed=("data",)),
    },
    needed=("group", "extra_info", "stats"),
)


def check_record(record: dict[str, Any]) -> None:
    """Raise a ValueError that names the row and the key which cannot be used.

    Parameters
    ----------
    record : dict
        As ``gpuclf bench --json`` writes it, of whatever version, with a list of rows.
    """
    _check(record, RECORD, "it")
    if not isinstance(dataset := record.get("dataset"), str | None):
        _check(dataset, DATASET, "dataset")
    for number, found in enumerate(record.get("break_even") or ()):
        if len(found["between"]) != 2:
            raise ValueError(f"break_even[{number}]: between must name two implementations")
    seen: dict[Any, int] = {}
    for number, row in enumerate(record["rows"], 1):
        where = f"row {number}"
        _check(row, ROW, where)
        if row.get("status") == "timed" and not row["times_s"]:
            raise ValueError(f"{where}: times_s must have a time, because status is timed")
        spread = [row.get(name) for name in ("median_s", "p20_s", "p80_s")]
        if row.get("median_s") is not None and None in spread:
            raise ValueError(f"{where}: median_s needs p20_s and p80_s beside it")
        if None not in spread and not spread[1] <= spread[0] <= spread[2]:
            raise ValueError(f"{where}: median_s must lie between p20_s and p80_s")
        if row.get("extrapolated") and "measured_samples" not in row:
            raise ValueError(f"{where} has no 'measured_samples', but is extrapolated")
        key = row.get("case", (row["operation"], row["samples"])), row["implementation"]
        if (first := seen.setdefault(key, number)) != number:
            raise ValueError(f"{where}: implementation and case are those of row {first}")


def check_entry(entry: dict[str, Any], number: int) -> None:
    """Raise a ValueError that names the key of pytest-benchmark's entry which cannot be used."""
    _check(entry, ENTRY, f"benchmark {number}")


def _check(value: Any, schema: Any, where: str) -> None:
    match schema:
        case Kind():
            if not schema.allows(value):
                raise ValueError(f"{where} must be {schema.words}, got {_shown(value)}")
        case Maybe():
            if value is not None:
                _check(value, schema.schema, where)
        case [of_each]:
            if not isinstance(value, list):
                raise ValueError(f"{where} must be a list, got {_shown(value)}")
            for number, one in enumerate(value):
                _check(one, of_each, f"{where}[{number}]")
        case Fields() | Each():
            if not isinstance(value, dict):
                raise ValueError(f"{where} must be an object, got {_shown(value)}")
            _check_keys(value, schema, where)


def _check_keys(value: dict[str, Any], schema: Fields | Each, where: str) -> None:
    for key, one in value.items():
        if not _is_text(key):
            raise ValueError(f"{where} has a key that is no text: {_shown(key)}")
        name = key if where == "it" else f"{where}: {key}"
        if isinstance(schema, Each):
            _check(one, schema.schema, name)
        elif key in schema.schemas:
            _check(one, schema.schemas[key], name)
        elif schema.closed:
            raise ValueError(f"{where} has {_shown(key)}, which no record has")
    for key in schema.needed if isinstance(schema, Fields) else ():
        if key not in value:
            raise ValueError(f"{where} has no {key!r}")


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return {list: "a list", dict: "an object"}[type(value)]
    return "null" if value is None else ascii(value)[:60]
