"""The few instructions of pickle that a batch of CIFAR-10 consists of, and no others.

A pickle is a program. It may name any importable object, call it with arguments of its choice
(REDUCE), hand it a state (BUILD) and so run what it likes. Letting it name numpy.ndarray and
numpy.dtype is not harmless either: these can then be called at will, and a forged state reaches
NumPy's C code. Python's own unpickler can moreover be made to take all memory, or to end the
process, without a single name. So the program is read here, by the instructions that the published
files hold (23 kinds) and those that Python 3 writes for the same content (protocols 2 to 5). Every
name stands for an object of this module, what may lie within what is fixed, and no file takes more
than a bounded number of instructions.
"""

import math
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

__all__ = ["ForbiddenPickleError", "MalformedPickleError", "PickledArray", "read_pickle"]

# data_batch_1 has 30,098 instructions and memo entries up to 10,013. Saved again by Python 3 with
# protocol 2, the longest form, it has 90,152 and 30,039.
MOST_INSTRUCTIONS = 1 << 18
MOST_MEMO_ENTRIES = 1 << 16
LONGEST_TUPLE = 16  # the state of a dtype has 8 or 9 items, no other tuple as many


class ForbiddenPickleError(ValueError):
    """A pickle asks for something that no batch of CIFAR-10 contains."""


class MalformedPickleError(ValueError):
    """A pickle ends too early, or puts together what does not belong together."""


class PickledArray:
    """Stands for an array of bytes; `array` is a read-only view of the bytes in the pickle."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: npt.NDArray[np.uint8] | None = None

    def fill(self, content: object, shape: object, order: object) -> None:
        """Take the content, if it is bytes of that shape."""
        match content, shape, order:
            case bytes(), tuple(), "C" | "F" if set(map(type, shape)) <= {int}:
                layout: Any = order
            case _:
                raise MalformedPickleError("a malformed array")
        if min(shape, default=0) < 0 or math.prod(shape) != len(content):
            raise MalformedPickleError("an array of another size than its content")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order=layout)


class _Dtype:
    """Stands for the one dtype that is read, uint8."""

    __slots__ = ()


class _Name:
    """Stands for what a pickle may name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


_NAMES = {
    (module, name): _Name(name)
    for name, modules in {
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
        "ndarray": ("numpy",),
        "dtype": ("numpy",),
        "encode": ("_codecs",),
        "bytes": ("__builtin__", "builtins"),
    }.items()
    for module in modules
}
# By type, never by value: to compare, hash or print a value that a file has built may take forever.
_SCALARS = frozenset({int, bool, bytes, str, type(None)})
_KEYS = frozenset({bytes, str})
_OF_A_DICT = _SCALARS | {list, PickledArray}
_OF_A_TUPLE = _SCALARS | {tuple, _Dtype, _Name}


def read_pickle(data: bytes) -> object:
    """Return what a pickle holds, out of lists, dicts, strings, numbers and arrays of bytes.

    Parameters
    ----------
    data : bytes
        A pickle of protocol 2 to 5. Strings of Python 2 become bytes.

    Returns
    -------
    object
        Arrays are instances of PickledArray.

    Raises
    ------
    ForbiddenPickleError
        It asks for a name or an instruction that no batch of CIFAR-10 contains.
    MalformedPickleError
        It ends too early or makes no sense.

    Notes
    -----
    Time and memory are proportional to the length of `data`. What the instructions mean is said in
    Python's :mod:`pickletools`.
    """
    return _Machine(data).run()


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below the current one, one for each MARK
        self.memo: dict[int, Any] = {}
        self.encoded = 0  # characters

    def run(self) -> object:
        data, number = self.data, 0
        try:
            for _ in range(MOST_INSTRUCTIONS):
                code = data[self.at]
                if code == _STOP:
                    if self.at + 1 < len(data):  # such a file is none that was ever published
                        raise MalformedPickleError("more after its end")
                    return self.stack[-1]
                width, follow = _INSTRUCTIONS.get(code) or _refuse(code)
                start, self.at = self.at + 1, self.at + 1 + width
                if width:
                    number = int.from_bytes(data[start : self.at], "little")
                    if self.at > len(data):
                        break
                follow(self, number)
            else:
                raise ForbiddenPickleError(f"more than {MOST_INSTRUCTIONS:,} instructions")
        except (IndexError, KeyError):  # of the data, the stack or the memo
            pass
        except UnicodeDecodeError:
            raise MalformedPickleError("a string that is not UTF-8") from None
        raise MalformedPickleError("it ends too early")

    def take(self, n: int) -> bytes:
        start, self.at = self.at, self.at + n
        if self.at > len(self.data):
            raise MalformedPickleError("it ends too early")
        return self.data[start : self.at]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + 100)
        if end < 0:
            if self.at + 100 >= len(self.data):
                raise MalformedPickleError("it ends too early")
            raise ForbiddenPickleError("a name that does not end")
        start, self.at = self.at, end + 1
        return self.data[start:end]

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: int) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def push_bytes(self, n: int) -> None:
        self.stack.append(self.take(n))

    def push_text(self, n: int) -> None:
        self.stack.append(self.take(n).decode())

    def push_signed(self, number: int) -> None:
        self.stack.append(number - (number >> 31 << 32))

    def put(self, index: int) -> None:
        if index >= MOST_MEMO_ENTRIES:
            raise ForbiddenPickleError(f"more than {MOST_MEMO_ENTRIES:,} memo entries")
        self.memo[index] = self.stack[-1]

    def push_tuple(self, items: list[Any]) -> None:
        """Push a tuple of few scalars, or of these and flat tuples."""
        if len(items) > LONGEST_TUPLE:
            raise ForbiddenPickleError(f"a tuple of more than {LONGEST_TUPLE} items")
        for item in items:
            nested = type(item) is tuple and any(type(part) is tuple for part in item)
            if nested or type(item) not in _OF_A_TUPLE:
                raise ForbiddenPickleError(f"a {_kind(item)} in a tuple")
        self.stack.append(tuple(items))

    def push_top_as_tuple(self, n: int) -> None:
        items = [self.stack.pop() for _ in range(n)]
        self.push_tuple(items[::-1])

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise MalformedPickleError("an item for something that is not a list")
        for kind in set(map(type, items)) - _SCALARS:
            raise ForbiddenPickleError(f"a {_plain(kind)} in a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise MalformedPickleError("an entry for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEYS:
                raise ForbiddenPickleError(f"a {_kind(key)} as a key")
            if type(value) not in _OF_A_DICT:
                raise ForbiddenPickleError(f"a {_kind(value)} in a dict")
            target[key] = value

    def set_item(self, _: int) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def push_name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise MalformedPickleError("a name that is not text")
        try:
            self.stack.append(_NAMES[module, name])
        except KeyError:
            raise ForbiddenPickleError(f"{module[:60]}.{name[:60]}"[:80]) from None

    def name_in_lines(self, _: int) -> None:
        module, name = self.line(), self.line()
        self.push_name(module.decode(), name.decode())

    def name_on_stack(self, _: int) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def call(self, _: int) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise MalformedPickleError("a call of something that cannot be called")
        match called.name, arguments:
            case "encode", (str(text), "latin1" | b"latin1"):
                # As Python 3 writes bytes for the protocol of Python 2: each once.
                self.encoded += len(text)
                if self.encoded > len(self.data):
                    raise ForbiddenPickleError("more bytes than the file has")
                try:
                    self.stack.append(text.encode("latin1"))
                except UnicodeEncodeError:
                    raise MalformedPickleError("bytes that are none") from None
            case "bytes", ():  # how Python 3 writes no bytes for the protocol of Python 2
                self.stack.append(b"")
            case "dtype", (str() | bytes() as code, *_):
                if code not in ("u1", "|u1", b"u1", b"|u1"):
                    code = code[:20]
                    shown = code.decode("ascii", "replace") if isinstance(code, bytes) else code
                    raise MalformedPickleError(f"an array of dtype {shown!r}")
                self.stack.append(_Dtype())
            case "_reconstruct", _:
                self.stack.append(PickledArray())
            case "_frombuffer", (content, _Dtype(), shape, order):
                array = PickledArray()
                array.fill(content, shape, order)
                self.stack.append(array)
            case name, _:
                raise ForbiddenPickleError(f"an unusual call of {name}")

    def build(self, _: int) -> None:
        state = self.stack.pop()
        match self.stack[-1], state:
            case _Dtype(), tuple():
                pass  # byte order and alignment mean nothing to bytes
            case PickledArray() as array, (int(), shape, _Dtype(), bool(fortran_order), content):
                array.fill(content, shape, "F" if fortran_order else "C")
            case _:
                raise MalformedPickleError("a malformed array")


def _refuse(code: int) -> NoReturn:
    for known in pickletools.opcodes:
        if ord(known.code) == code:
            raise ForbiddenPickleError(f"the instruction {known.name}")
    raise MalformedPickleError("no pickle")


def _kind(value: object) -> str:
    return _plain(type(value))


def _plain(kind: type) -> str:
    return kind.__name__.strip("_").lower()


def _push(value: object) -> Callable[[_Machine, int], None]:
    return lambda machine, _: machine.stack.append(value)


def _nothing(machine: _Machine, _: int) -> None:
    """Take no notice: of the protocol, and of frames, which only help to read a file in parts."""


_STOP = ord(".")
# For each instruction: the bytes of the number that follows it, and what is to be done.
_STEPS: dict[str, tuple[int, Callable[[_Machine, int], object]]] = {
    "PROTO": (1, _nothing),
    "FRAME": (8, _nothing),
    "MARK": (0, _Machine.mark),
    "NONE": (0, _push(None)),
    "NEWTRUE": (0, _push(True)),
    "NEWFALSE": (0, _push(False)),
    "BININT": (4, _Machine.push_signed),
    "BININT1": (1, lambda machine, number: machine.stack.append(number)),
    "BININT2": (2, lambda machine, number: machine.stack.append(number)),
    "SHORT_BINSTRING": (1, _Machine.push_bytes),
    "BINSTRING": (4, _Machine.push_bytes),
    "SHORT_BINBYTES": (1, _Machine.push_bytes),
    "BINBYTES": (4, _Machine.push_bytes),
    "BYTEARRAY8": (8, _Machine.push_bytes),
    "SHORT_BINUNICODE": (1, _Machine.push_text),
    "BINUNICODE": (4, _Machine.push_text),
    "EMPTY_TUPLE": (0, _push(())),
    "TUPLE1": (0, lambda machine, _: machine.push_top_as_tuple(1)),
    "TUPLE2": (0, lambda machine, _: machine.push_top_as_tuple(2)),
    "TUPLE3": (0, lambda machine, _: machine.push_top_as_tuple(3)),
    "TUPLE": (0, lambda machine, _: machine.push_tuple(machine.since_mark())),
    "EMPTY_LIST": (0, lambda machine, _: machine.stack.append([])),
    "APPEND": (0, lambda machine, _: machine.append([machine.stack.pop()])),
    "APPENDS": (0, lambda machine, _: machine.append(machine.since_mark())),
    "EMPTY_DICT": (0, lambda machine, _: machine.stack.append({})),
    "SETITEM": (0, _Machine.set_item),
    "SETITEMS": (0, lambda machine, _: machine.set_items(machine.since_mark())),
    "BINPUT": (1, _Machine.put),
    "LONG_BINPUT": (4, _Machine.put),
    "MEMOIZE": (0, lambda machine, _: machine.put(len(machine.memo))),
    "BINGET": (1, lambda machine, index: machine.stack.append(machine.memo[index])),
    "LONG_BINGET": (4, lambda machine, index: machine.stack.append(machine.memo[index])),
    "GLOBAL": (0, _Machine.name_in_lines),
    "STACK_GLOBAL": (0, _Machine.name_on_stack),
    "REDUCE": (0, _Machine.call),
    "BUILD": (0, _Machine.build),
}
_INSTRUCTIONS = {
    ord(known.code): _STEPS[known.name] for known in pickletools.opcodes if known.name in _STEPS
}
