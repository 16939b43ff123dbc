"""Python values as JSON and arrays, and back: numbers, arrays, generators, histories.

What JSON has stands for itself. Anything else is an object {"is": kind, ...} with one of the kinds
below; no name in a file is ever imported or called.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuclf import augment
from gpuclf.arrays import to_host

__all__ = ["LEFT_OUT", "ValueReader", "ValueWriter"]

MAX_LABEL_CHARACTERS = 10**7  # NumPy gives each label the length of the longest
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
SCALARS: dict[str, type[np.generic]] = {
    kind.__name__: kind
    for kind in (
        *(np.bool_, np.str_, np.float16, np.float32, np.float64),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    )
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"augment.{name}": getattr(augment, name) for name in augment.__all__
}


class _LeftOut:
    """Stands for a value that no file can hold."""


LEFT_OUT = _LeftOut()


class ValueWriter:
    """Turns values into JSON and arrays.

    Attributes
    ----------
    arrays : dict of NumPy array
        What the JSON refers to by name.
    left_out : dict
        The values that could not be stored, by where they were.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.left_out: dict[str, Any] = {}
        self._names: set[str] = set()
        self._seen: dict[int, tuple[Any, Any]] = {}  # with the value, so that no id is used again

    def write(self, value: Any, where: str) -> Any:
        """Return the JSON of a value; LEFT_OUT, and a line in `left_out`, if it has none."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"is": "float", "text": repr(value)}
        if type(value) in SCALARS.values():
            item = self.write(value.item(), where)
            return {"is": "scalar", "type": type(value).__name__, "value": item}
        if id(value) not in self._seen:
            self._seen[id(value)] = value, self._write_object(value, where)
        return self._seen[id(value)][1]

    def _write_object(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind is list and value and all(type(item) is float for item in value):
            return {"is": "floats", "name": self._keep(np.array(value), where)}
        if kind in (list, tuple):
            items = [self._item(item, f"{where}.{n}") for n, item in enumerate(value)]
            return items if kind is list else {"is": "tuple", "items": items}
        if kind is dict and all(type(key) is str for key in value):
            of = {key: self._item(item, f"{where}.{key}") for key, item in value.items()}
            return {"is": "dict", "items": of}
        if kind is dict:  # weights of classes, by labels that are no strings
            pairs = [self._item(pair, f"{where}.{n}") for n, pair in enumerate(value.items())]
            return {"is": "pairs", "items": pairs}
        if kind is np.random.Generator and type(value.bit_generator).__name__ in BIT_GENERATORS:
            state = self.write(value.bit_generator.state, where)
            return {"is": "generator", "name": self._name(where), "state": state}
        if kind is np.random.RandomState:
            state = self.write(value.get_state(legacy=False), where)
            return {"is": "random_state", "name": self._name(where), "state": state}
        if kind is functools.partial:
            parts = (value.func, list(value.args), value.keywords)
            func, args, keywords = (self.write(part, where) for part in parts)
            if func is not LEFT_OUT:
                return {"is": "partial", "function": func, "args": args, "keywords": keywords}
            return LEFT_OUT
        for name, function in FUNCTIONS.items():
            if value is function:
                return {"is": "function", "function": name}
        return self.write_other(value, where)

    def write_other(self, value: Any, where: str) -> Any:
        """Write a history or an array; a subclass knows more."""
        from gpuclf.training.history import History

        if type(value) is History:
            items = {k: self.write(v, f"{where}.{k}") for k, v in vars(value).items()}
            return {"is": "history", "items": items}
        try:
            array = to_host(value)
        except TypeError:  # no array
            return self._leave_out(value, where)
        return self._array(array, where)

    def _item(self, value: Any, where: str) -> Any:
        found = self.write(value, where)
        return None if found is LEFT_OUT else found

    def _array(self, value: np.ndarray, where: str) -> Any:
        if type(value) not in (np.ndarray, np.memmap):  # masked arrays hold more than their numbers
            return self._leave_out(value, where)
        if value.dtype.kind in "UO":
            labels, name = value.ravel().tolist(), "str" if value.dtype.kind == "U" else "object"
            plain = all(type(label) in (str, int, float, bool) for label in labels)
            if not plain or not _labels_fit(labels):
                return self._leave_out(value, where)
            items = [self.write(label, where) for label in labels]
            return {"is": "labels", "type": name, "shape": list(value.shape), "items": items}
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            return self._leave_out(value, where)
        # A product rounds by the order of its factors in memory, so that order is kept.
        columns = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
        stored = value.T if columns else value
        native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        name = self._keep(np.ascontiguousarray(native).reshape(native.shape), where)
        return {"is": "array", "name": name, "order": "F" if columns else "C"}

    def _keep(self, array: np.ndarray, where: str) -> str:
        name = self._name(where)
        self.arrays[name] = array
        return name

    def _name(self, where: str) -> str:
        """Return a name that nothing has: keys with a point may lead to the same place."""
        name, number = where, 2
        while name in self._names:
            name, number = f"{where}~{number}", number + 1
        self._names.add(name)
        return name

    def _leave_out(self, value: Any, where: str) -> Any:
        self.left_out[where] = value
        return LEFT_OUT


class ValueReader:
    """Turns JSON and arrays into values again.

    Parameters
    ----------
    arrays : dict of NumPy array

    Raises
    ------
    ValueError
        From :meth:`read` and :meth:`finish`: what was not written by :class:`ValueWriter`. A wrong
        structure may raise the KeyError, TypeError or AttributeError of the access that met it.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self._read: dict[str, Any] = {}  # what several places share
        self.kinds: dict[str, Callable[[Any], Any]] = {
            "array": self._read_array,
            "dict": self._read_dict,
            "float": self._read_float,
            "floats": self._read_floats,
            "function": self._read_function,
            "generator": self._read_generator,
            "history": self._read_history,
            "labels": self._read_labels,
            "pairs": self._read_pairs,
            "partial": self._read_partial,
            "random_state": self._read_random_state,
            "scalar": self._read_scalar,
            "tuple": self._read_tuple,
        }

    def read(self, node: Any) -> Any:
        """Return the value of a JSON value."""
        if isinstance(node, list):
            return [self.read(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node["is"]
        if kind not in self.kinds:
            raise ValueError(f"unknown kind of value {kind!r}")
        name = node.get("name")
        if name is None:
            return self.kinds[kind](node)
        if name not in self._read:
            self._read[name] = self.kinds[kind](node)
        return self._read[name]

    def finish(self) -> None:
        """Raise if an array was referred to by nothing."""
        unused = self.arrays.keys() - self._read.keys()
        if unused:
            raise ValueError(f"nothing refers to the arrays {sorted(unused)}")

    def _read_float(self, node: Any) -> float:
        if node["text"] not in ("nan", "inf", "-inf"):
            raise ValueError(f"a float is written as {node['text']!r}")
        return float(node["text"])

    def _read_array(self, node: Any) -> np.ndarray:
        array = self.arrays[node["name"]]
        return array.T if node["order"] == "F" else array

    def _read_floats(self, node: Any) -> list[float]:
        array = self.arrays[node["name"]]
        if array.dtype != np.float64 or array.ndim != 1:
            raise ValueError(f"{node['name']} is no list of float64 but {_described(array)}")
        values: list[float] = array.tolist()
        return values

    def _read_scalar(self, node: Any) -> Any:
        kind, value = SCALARS[node["type"]], self.read(node["value"])
        scalar = kind(value)
        if type(value) is not type(scalar.item()):
            raise ValueError(f"a {node['type']} is written as {value!r}")
        return scalar

    def _read_labels(self, node: Any) -> np.ndarray:
        labels = self.read(node["items"])
        types = {"str": (str,), "object": (str, int, float, bool)}[node["type"]]
        if not all(type(label) in types for label in labels) or not _labels_fit(labels):
            raise ValueError(f"labels are not of type {node['type']}, or too long")
        array = np.empty(len(labels), dtype=object)
        array[:] = labels
        if node["type"] == "str":
            array = np.array(labels, dtype=str)
        return array.reshape(tuple(node["shape"]))

    def _read_tuple(self, node: Any) -> tuple[Any, ...]:
        return tuple(self.read(node["items"]))

    def _read_dict(self, node: Any) -> dict[str, Any]:
        return {key: self.read(item) for key, item in node["items"].items()}

    def _read_pairs(self, node: Any) -> dict[Any, Any]:
        return dict(self.read(node["items"]))

    def _read_history(self, node: Any) -> Any:
        from gpuclf.training.history import History

        history = History(**self._read_dict(node))
        for name, value in vars(history).items():
            wanted = bool if name == "reached_max_iter" else list
            if type(value) is not wanted or (wanted is list and not _are_finite(value)):
                raise ValueError(f"history_.{name} must be a {wanted.__name__} of finite numbers")
        return history

    def _read_generator(self, node: Any) -> np.random.Generator:
        state = self.read(node["state"])
        kind = state["bit_generator"]
        if kind not in BIT_GENERATORS:
            raise ValueError(f"unknown bit generator {kind!r}")
        _check_positions(state)
        bits = getattr(np.random, kind)()
        bits.state = state
        return np.random.Generator(bits)

    def _read_random_state(self, node: Any) -> np.random.RandomState:
        state = self.read(node["state"])
        _check_positions(state)
        random_state = np.random.RandomState()
        random_state.set_state(state)
        return random_state

    def _read_function(self, node: Any) -> Callable[..., Any]:
        if node["function"] not in FUNCTIONS:
            raise ValueError(f"unknown function {node['function']!r}")
        return FUNCTIONS[node["function"]]

    def _read_partial(self, node: Any) -> Any:
        function = self._read_function(node["function"])
        return functools.partial(function, *self.read(node["args"]), **self.read(node["keywords"]))


def _labels_fit(labels: list[Any]) -> bool:
    longest = max((len(label) for label in labels if isinstance(label, str)), default=1)
    return longest * len(labels) <= MAX_LABEL_CHARACTERS


def _are_finite(values: Any) -> bool:
    return all(type(value) is float and math.isfinite(value) for value in values)


def _check_positions(state: dict[str, Any]) -> None:
    """Raise for a place outside a generator's buffer: NumPy would read there."""
    places = (state["state"].get("pos", 0), 624), (state.get("buffer_pos", 0), 4)
    for place, size in places:
        if type(place) is not int or not 0 <= place <= size:
            raise ValueError(f"a generator's place must be an integer in 0..{size}, got {place!r}")


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
