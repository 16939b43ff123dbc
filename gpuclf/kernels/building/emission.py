"""Functions for compiled loops that are spelled out in LLVM's instructions; needs numba.

numba does not look here when it decides whether what it compiled before still holds: after a change
of this file, delete the kernels' folders ``__pycache__``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["I8", "I32", "I64", "Array", "Code", "emitted"]

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Array:
    """An argument that is an array: the address where it begins, and its rows."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self._builder = builder
        self._array = context.make_array(kind)(context, builder, value)
        self.dtype, self.item = kind.dtype, context.get_data_type(kind.dtype)
        self.start = builder.bitcast(self._array.data, I8.as_pointer())

    def row(self, number: Any) -> Any:
        """Return the address of a row."""
        number = I64(number) if isinstance(number, int) else number
        row_bytes = cgutils.unpack_tuple(self._builder, self._array.strides)[0]
        return self._builder.gep(self.start, [self._builder.mul(number, row_bytes)])

    def below(self, number: Any) -> Array:
        """Return the rows from this one on."""
        found = copy.copy(self)
        found.start = self.row(number)
        return found

    def length(self, axis: int) -> Any:
        """Return the length of an axis."""
        return cgutils.unpack_tuple(self._builder, self._array.shape)[axis]


class Code:
    """LLVM's builder, with addresses in bytes; an array stands for its first one."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def call(self, name: str, result: Any, *arguments: Any, fastmath: tuple[str, ...] = ()) -> Any:
        """Call one of LLVM's functions."""
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments, fastmath=fastmath)

    def at(self, address: Any, *offsets: Any) -> Any:
        """Return an address moved by offsets in bytes."""
        address = address.start if isinstance(address, Array) else address
        for offset in offsets:
            offset = I64(offset) if isinstance(offset, int) else offset
            address = self.builder.gep(address, [offset])
        return address

    def times(self, number: Any, factor: int) -> Any:
        """Multiply an index."""
        return self.builder.mul(number, I64(factor))

    def plus(self, number: Any, offset: int) -> Any:
        """Move an index."""
        return self.builder.add(number, I64(offset))

    def smaller(self, a: Any, b: Any) -> Any:
        """Return the smaller index."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def load(self, address: Any, kind: Any, align: int = 1) -> Any:
        """Load a number or a vector."""
        pointer = self.builder.bitcast(self.at(address), kind.as_pointer())
        return self.builder.load(pointer, align=align)

    def store(self, value: Any, address: Any, align: int = 1) -> None:
        """Store a number or a vector."""
        pointer = self.builder.bitcast(self.at(address), value.type.as_pointer())
        self.builder.store(value, pointer, align=align)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        """Return ``a * b + total``, with one rounding where the processor can."""
        flags = ("contract",)
        return self.builder.fadd(self.builder.fmul(a, b, flags=flags), total, flags=flags)

    def sum(self, vector: Any) -> Any:
        """Return the sum of a vector of floats."""
        kind, scalar = vector.type, vector.type.element
        bits = 32 if isinstance(scalar, ir.FloatType) else 64
        name = f"llvm.vector.reduce.fadd.v{kind.count}f{bits}"
        return self.call(name, scalar, ir.Constant(scalar, 0.0), vector, fastmath=("reassoc",))

    def prefetch(self, address: Any) -> None:
        """Ask for a cache line, into L2."""
        for_reading, into_l2, data = I32(0), I32(2), I32(1)
        given = self.at(address), for_reading, into_l2, data
        self.call("llvm.prefetch.p0", ir.VoidType(), *given)

    def everywhere(self, scalar: Any, vector: Any) -> Any:
        """Return a vector whose numbers are all the same."""
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
        return self.builder.shuffle_vector(first, undefined, zeros)


def emitted(
    body: Callable[..., Any],
    code_type: type[Code] = Code,
    returns: Callable[..., Any] | None = None,
) -> Any:
    """Make a function for compiled loops of one that emits its instructions.

    Parameters
    ----------
    body : callable
        ``body(code, *arguments)``, where an array is given as :class:`Array`, a tuple as its
        length (of tuples, as the list of theirs), a float in 64 bits, and anything else as a
        64-bit integer.
    code_type : type
        Of `code`.
    returns : callable, optional
        ``returns(*kinds)`` is numba's type of what `body` returns for arguments of these types; by
        default it returns nothing.
    """

    @functools.wraps(body)
    def typed(typing_context: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def argument(kind: Any, value: Any) -> Any:
                if isinstance(kind, types.Array):
                    return Array(context, builder, kind, value)
                return _lengths(kind) if isinstance(kind, types.BaseTuple) else value

            found = body(code_type(builder), *map(argument, signature.args, values))
            return context.get_dummy_value() if returns is None else found

        are_kept = types.Array, types.BaseTuple
        numbers = [
            types.float64 if isinstance(kind, types.Float) else types.int64 for kind in kinds
        ]
        taken = [
            kind if isinstance(kind, are_kept) else number
            for kind, number in zip(kinds, numbers, strict=True)
        ]
        result = types.void if returns is None else returns(*kinds)
        return result(*taken), generate

    return intrinsic(typed)


def _lengths(kind: Any) -> Any:
    parts = list(kind)
    if parts and all(isinstance(part, types.BaseTuple) for part in parts):
        return [part.count for part in parts]
    return kind.count
