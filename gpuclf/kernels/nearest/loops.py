"""Distances between bytes, compiled for the processor that it runs on; needs numba.

Processors have instructions that take 32 or 64 bytes at once: VPSADBW sums absolute differences
(AVX2, AVX-512BW), VPDPBUSD multiplies and sums (VNNI). Compilers do not find them at full width in
a plain loop, so the innermost loop is written with them, for a block of 4 x 4 pairs of samples:
sixteen sums stay in registers, and each byte that is loaded is used four times. Where there is a
matrix unit for bytes (AMX), `byte_products` has the products of L2.

The functions return NotImplemented where the processor lacks its instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from gpuclf.kernels.building.emission import I8, I32, I64, Code, emitted
from gpuclf.kernels.building.machine_code import compiled, matrix_unit_is_usable, processor_features
from gpuclf.samples.standardized import BYTE_CENTRE

__all__ = ["manhattan", "squared_euclidean"]

BLOCK = 4
PANEL = 64  # rows of B that stay in L2 while the rows of A pass


@dataclass(frozen=True)
class Instruction:
    """An instruction that sums a function of two vectors of bytes, several bytes to a lane."""

    name: str
    n_bytes: int
    operand: Any
    sums: Any
    adds_to_sums: bool

    def emit(self, code: Code, sums: Any, a: Any, b: Any) -> Any:
        """Emit ``sums + f(a, b)``."""
        if self.adds_to_sums:
            return code.call(self.name, self.sums, sums, b, a)
        return code.builder.add(sums, code.call(self.name, self.sums, a, b))


def _absolute_differences() -> Instruction | None:
    features = processor_features()
    if features.get("avx512bw"):
        operand, sums = ir.VectorType(I8, 64), ir.VectorType(I64, 8)
        return Instruction("llvm.x86.avx512.psad.bw.512", 64, operand, sums, adds_to_sums=False)
    if features.get("avx2"):
        operand, sums = ir.VectorType(I8, 32), ir.VectorType(I64, 4)
        return Instruction("llvm.x86.avx2.psad.bw", 32, operand, sums, adds_to_sums=False)
    return None


def _products() -> Instruction | None:
    if not processor_features().get("avx512vnni"):
        return None
    sums = ir.VectorType(I32, 16)
    return Instruction("llvm.x86.avx512.vpdpbusd.512", 64, sums, sums, adds_to_sums=True)


ABSOLUTE_DIFFERENCES, PRODUCTS = _absolute_differences(), _products()


def _block(n_rows: int) -> Any:
    """Return a compiled function that sums for ``n_rows`` rows of A and as many of B.

    ``block(A, B, out, i, j)`` writes ``out[i : i + n_rows, j : j + n_rows]``: products for signed
    bytes A, absolute differences for unsigned ones. B holds unsigned bytes, and the number of
    features is a multiple of the instruction's bytes.
    """
    rows = range(n_rows)

    @emitted
    def block(code: Code, A: Any, B: Any, out: Any, i: Any, j: Any) -> None:
        builder = code.builder
        instruction = PRODUCTS if A.dtype == types.int8 else ABSOLUTE_DIFFERENCES
        assert instruction is not None
        starts_A = [A.row(code.plus(i, r)) for r in rows]
        starts_B = [B.row(code.plus(j, c)) for c in rows]
        zero = ir.Constant(instruction.sums, None)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in rows] for _ in rows]
        n_steps = builder.udiv(A.length(1), I64(instruction.n_bytes))
        with cgutils.for_range(builder, n_steps) as loop:
            offset = code.times(loop.index, instruction.n_bytes)
            a, b = (
                [code.load(code.at(start, offset), instruction.operand) for start in starts]
                for starts in (starts_A, starts_B)
            )
            for r in rows:
                for c in rows:
                    so_far = builder.load(sums[r][c])
                    builder.store(instruction.emit(code, so_far, a[r], b[c]), sums[r][c])
        lane = instruction.sums.element
        reduce = f"llvm.vector.reduce.add.v{instruction.sums.count}i{lane.width}"
        for r in rows:
            out_row = builder.bitcast(out.row(code.plus(i, r)), I32.as_pointer())
            for c in rows:
                total = code.call(reduce, lane, builder.load(sums[r][c]))
                total = total if lane == I32 else builder.trunc(total, I32)
                builder.store(total, builder.gep(out_row, [code.plus(j, c)]))

    return block


_square, _pair = _block(BLOCK), _block(1)


@compiled
def _fill(A: Any, B: Any, out: Any) -> None:
    """Fill ``out`` (N, M) for A (N, D) and B (M, D), in blocks and, at the edges, in pairs."""
    n, m = out.shape
    n_whole = n - n % BLOCK
    for start in range(0, m, PANEL):
        stop = min(start + PANEL, m)
        stop_whole = stop - (stop - start) % BLOCK
        for i in range(0, n_whole, BLOCK):
            for j in range(start, stop_whole, BLOCK):
                _square(A, B, out, i, j)
        for i in range(n):
            for j in range(start if i >= n_whole else stop_whole, stop):
                _pair(A, B, out, i, j)


@compiled
def _expand(products: Any, norms_A: Any, norms_B: Any) -> None:
    """Turn products into squared distances, in place."""
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            products[i, j] = np.int32(norms_A[i] + norms_B[j] - 2 * products[i, j])


@compiled
def _sums(X: Any) -> Any:
    """Return the sums of the features and of their squares."""
    sums, squares = np.zeros(X.shape[0], np.int64), np.zeros(X.shape[0], np.int64)
    for i in range(X.shape[0]):
        total, square = np.int64(0), np.int64(0)
        for d in range(X.shape[1]):
            x = np.int64(X[i, d])
            total += x
            square += x * x
        sums[i], squares[i] = total, square
    return sums, squares


def _padded(X: Any, n_bytes: int, n_rows: int = 1) -> Any:
    """Return X with zeros that fill the instruction's last bytes, and its last tile of rows."""
    missing = -len(X) % n_rows, -X.shape[1] % n_bytes
    padded = np.pad(X, ((0, missing[0]), (0, missing[1]))) if any(missing) else X
    return np.ascontiguousarray(padded)


def manhattan(A: Any, B: Any) -> Any:
    """Return the sums of absolute differences of bytes, int32."""
    if ABSOLUTE_DIFFERENCES is None:
        return NotImplemented
    A, B = (_padded(X, ABSOLUTE_DIFFERENCES.n_bytes) for X in (A, B))
    out = np.empty((len(A), len(B)), np.int32)
    _fill(A, B, out)
    return out


def squared_euclidean(A: Any, B: Any) -> Any:
    """Return the squared L2 distances of bytes, int32.

    The instruction multiplies signed by unsigned bytes: ``a*b = (a - 128)*b + 128*b``.
    """
    if matrix_unit_is_usable():
        return _on_matrix_unit(A, B)
    if PRODUCTS is None:
        return NotImplemented
    A, B = (_padded(X, PRODUCTS.n_bytes) for X in (A, B))
    out = np.empty((len(A), len(B)), np.int32)
    _fill((A ^ BYTE_CENTRE).view(np.int8), B, out)
    (_, squares_A), (sums_B, squares_B) = _sums(A), _sums(B)
    _expand(out, squares_A, squares_B - 2 * BYTE_CENTRE * sums_B)
    return out


def _on_matrix_unit(A: Any, B: Any) -> Any:
    from gpuclf.kernels.byte_products import loops as byte_products

    n_rows, n_columns = len(A), len(B)
    panel = byte_products.PANEL
    whole = n_columns // panel * panel
    A = _padded(A, panel, byte_products.GROUP)
    parts = [_padded(part, panel, panel) for part in (B[:whole], B[whole:])]
    sums, squares = _sums(A)
    norms = squares - 2 * BYTE_CENTRE * sums + BYTE_CENTRE**2 * A.shape[1]
    out = np.empty((len(A), sum(len(part) for part in parts)), np.int32)
    for part, column in zip(parts, (0, whole), strict=True):
        byte_products.squared_euclidean(A, part, norms.astype(np.int32), out, column)
    return out[:n_rows, :n_columns]
