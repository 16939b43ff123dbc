"""Products of bytes with floats on the matrix unit that some processors have; needs numba.

Intel's AMX multiplies a tile of 16 x 64 bytes by one of 64 x 16 in 16 cycles and adds up in 32-bit
integers: 1,024 multiplications a cycle, where two vector units do 32 of float32. So a float is
written as four digits of seven bits,

    w = scale * (d0 + d1 / 128 + d2 / 128**2 + d3 / 128**3),    -128 < d < 128,

with one power of two a column as the scale. The four products with bytes are exact, whatever their
order; what is lost is 2**-28 of the column's largest number, sixteen times less than float32 keeps.
Pixels count from 128: a digit's sum over the samples, times 128, is where its sums begin.

A group is 16 columns in their four digits, which are four tiles. The features are cut into panels
of 64.

All loops are in one file, because numba takes what it compiled before as long as the file of the
outermost function has not changed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gpuclf.kernels.building.emission import I8, I32, I64, Code, emitted
from gpuclf.kernels.building.machine_code import byte_dots_are_usable, compiled
from gpuclf.kernels.losses.loops import gradient_in_place

__all__ = [
    "BLOCK_ROWS",
    "GROUP",
    "PANEL",
    "affine_of_bytes",
    "clear_columns",
    "gradient_of_bytes",
    "linear_pass",
    "pack",
    "squared_euclidean",
    "zeros_of_W",
]

N_DIGITS = 4
BASE = 128.0
LARGEST = 127.0
GROUP = 16  # columns
PANEL = 64  # samples, and rows that one tile of the backward product takes
TILE_BYTES = 1024
GROUP_BYTES = N_DIGITS * TILE_BYTES
GROUP_ROWS = N_DIGITS * GROUP  # of digits
BLOCK_ROWS = 128  # both products find them in L2; sums of so many rows fit 32 bits at any values
MAX_EXPONENT = 126.0  # of float32

_floats, _ints = ir.VectorType(ir.FloatType(), GROUP), ir.VectorType(I32, GROUP)
_bytes = ir.VectorType(I8, PANEL)
# Palette 1; bytes a row and rows of each of the eight tiles.
TILE_SHAPES = np.zeros(64, np.uint8)
TILE_SHAPES[0] = 1
TILE_SHAPES[16:32:2] = 64
TILE_SHAPES[48:56] = 16


class ByteCode(Code):
    """Code with tiles, masks, digits and dot products of bytes."""

    def load_tile(self, tile: int, address: Any, pitch: Any) -> None:
        """Fill a tile with rows that lie `pitch` bytes apart."""
        pitch = I64(pitch) if isinstance(pitch, int) else pitch
        self.call("llvm.x86.tileloadd64", ir.VoidType(), I8(tile), address, pitch)

    def store_tile(self, tile: int, address: Any) -> None:
        """Write a tile's rows one after another."""
        self.call("llvm.x86.tilestored64", ir.VoidType(), I8(tile), address, I64(64))

    def multiply(self, signs: str, sums: int, a: int, b: int) -> None:
        """Add the product of two tiles; `signs` as in the instruction's name: u or s."""
        self.call(f"llvm.x86.tdpb{signs}d", ir.VoidType(), I8(sums), I8(a), I8(b))

    def first_lanes(self, count: Any) -> Any:
        """Return the mask of a vector's first `count` lanes."""
        counts = ir.VectorType(I64, GROUP)
        numbers = ir.Constant(counts, list(range(GROUP)))
        return self.builder.icmp_signed("<", numbers, self.everywhere(count, counts))

    def load_lanes(self, address: Any, mask: Any) -> Any:
        """Load the floats of a mask, and zero for the others."""
        zeros = ir.Constant(_floats, [0.0] * GROUP)
        return self.call("llvm.masked.load.v16f32.p0", _floats, address, I32(1), mask, zeros)

    def transpose(self, vectors: list[Any]) -> None:
        """Transpose 16 vectors of 16 numbers: single ones, then blocks of 2 x 2, 4 x 4, 8 x 8."""
        for distance in (1, 2, 4, 8):
            for i in range(GROUP):
                if not i & distance:
                    pair = vectors[i], vectors[i + distance]
                    vectors[i], vectors[i + distance] = self._exchanged(*pair, distance)

    def sums_of_lanes(self, vectors: list[Any]) -> Any:
        """Return a vector of 16 numbers, the sums of 16 vectors."""
        for distance in (8, 4, 2, 1):
            pairs = zip(vectors[:distance], vectors[distance:], strict=True)
            vectors = [self.builder.add(*self._exchanged(*pair, distance)) for pair in pairs]
        return vectors[0]

    def _exchanged(self, a: Any, b: Any, distance: int) -> list[Any]:
        """Return two vectors of which one has the even blocks of a and b, one the odd ones."""
        lanes = range(GROUP)
        low = [i if not i & distance else GROUP + i - distance for i in lanes]
        high = [i + distance if not i & distance else GROUP + i for i in lanes]
        masks = [ir.Constant(_ints, order) for order in (low, high)]
        return [self.builder.shuffle_vector(a, b, mask) for mask in masks]

    def add_dots(self, totals: Any, unsigned: Any, signed: Any) -> Any:
        """Add 16 dot products of four bytes to 16 integers; the bytes as 16 integers.

        By one instruction (VPDPBUSD), or spelled out, in a function for it is long: what stands
        around it can be tested anywhere.
        """
        is_there = byte_dots_are_usable()
        name = "llvm.x86.avx512.vpdpbusd.512" if is_there else "add_dots_of_bytes"
        signature = ir.FunctionType(_ints, [_ints] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        if not is_there and function.is_declaration:
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            _spell_out_dots(function)
        return self.builder.call(function, [totals, unsigned, signed])

    def number(self, sums: Any, row: int) -> Any:
        """Put the four digits' sums of a tile's row together, the small ones first."""
        step = ir.Constant(_floats, [1 / BASE] * GROUP)
        value = ir.Constant(_floats, [0.0] * GROUP)
        for digit in reversed(range(N_DIGITS)):
            ints = self.load(self.at(sums, TILE_BYTES * digit + 64 * row), _ints)
            number = self.builder.sitofp(ints, _floats)
            value = self.builder.fadd(self.builder.fmul(value, step), number)
        return value


def _spell_out_dots(function: Any) -> None:
    builder = ir.IRBuilder(function.append_basic_block())
    totals, unsigned, signed = function.args
    low_byte, top = ir.Constant(_ints, [255] * GROUP), ir.Constant(_ints, [24] * GROUP)
    for byte in range(4):
        below = ir.Constant(_ints, [8 * byte] * GROUP)
        above = ir.Constant(_ints, [24 - 8 * byte] * GROUP)
        left = builder.and_(builder.lshr(unsigned, below), low_byte)
        right = builder.ashr(builder.shl(signed, above), top)
        totals = builder.add(totals, builder.mul(left, right))
    builder.ret(totals)


emitted_of_bytes = partial(emitted, code_type=ByteCode)


@emitted_of_bytes
def begin(c: Any, tile_shapes: Any) -> None:
    """Give the eight tiles their shapes."""
    c.call("llvm.x86.ldtilecfg", ir.VoidType(), c.at(tile_shapes))


@emitted_of_bytes
def end(c: Any) -> None:
    """Give the tiles back, so that switching threads need not save them."""
    c.call("llvm.x86.tilerelease", ir.VoidType())


@emitted_of_bytes
def multiply_rows(
    c: Any, X: Any, first: Any, pitch: Any, packed: Any, group: Any, panel_bytes: Any,
    n_panels: Any, begins: Any, sums: Any,
) -> None:  # fmt: skip
    """Write ``begins + X[16 rows] @ digits`` to `sums`, four tiles of 16 rows x 16 columns.

    `first`, `group`: where the rows and the group begin, in bytes. `begins` (4, 16), one row for
    all, begins at the group.
    """
    builder = c.builder
    x, packed = c.at(X, first), c.at(packed, group)
    for digit in range(N_DIGITS):
        row = c.at(begins, builder.lshr(group, I64(4)), 64 * digit)
        c.load_tile(digit, row, 0)
    with cgutils.for_range(builder, n_panels) as loop:
        c.load_tile(4, c.at(x, c.times(loop.index, PANEL)), pitch)
        weights = c.at(packed, builder.mul(loop.index, panel_bytes))
        for digit in range(N_DIGITS):
            c.load_tile(5 + digit % 2, c.at(weights, TILE_BYTES * digit), 64)
            c.multiply("us", digit, 4, 5 + digit % 2)
    for digit in range(N_DIGITS):
        c.store_tile(digit, c.at(sums, TILE_BYTES * digit))


@emitted_of_bytes
def multiply_columns(
    c: Any, digits: Any, group: Any, step_bytes: Any, quads: Any, tile: Any, n_steps: Any,
    begins: Any, sums: Any,
) -> None:  # fmt: skip
    """Write ``begins + digits^T @ X[:, 16 features]`` to `sums`, four tiles of 16 x 16.

    `group`: where the group begins among the digits of 64 rows, which are `step_bytes` long.
    `tile`: which sixteen features of the panel in `quads`. `begins` (4, 16, 16).
    """
    builder = c.builder
    digits, quads = c.at(digits, group), c.at(quads, c.times(tile, TILE_BYTES))
    for digit in range(N_DIGITS):
        c.load_tile(digit, c.at(begins, TILE_BYTES * digit), 64)
    with cgutils.for_range(builder, n_steps) as loop:
        c.load_tile(4, c.at(quads, c.times(loop.index, 4 * TILE_BYTES)), 64)
        rows = c.at(digits, builder.mul(loop.index, step_bytes))
        for digit in range(N_DIGITS):
            c.load_tile(5 + digit % 2, c.at(rows, TILE_BYTES * digit), 64)
            c.multiply("su", digit, 5 + digit % 2, 4)
    for digit in range(N_DIGITS):
        c.store_tile(digit, c.at(sums, TILE_BYTES * digit))


@emitted_of_bytes
def interleave(
    c: Any, X: Any, first: Any, pitch: Any, quads: Any, step_bytes: Any, n_quads: Any
) -> None:
    """Put the bytes of four rows next to each other, for 64 features; four tiles each 64 rows.

    `quads` begins at the first tile; those of the next 64 rows come `step_bytes` later.

    Byte unpacking works within 16 bytes, so tile t gets the features 16 i + 4 t + j for i, j < 4.
    """
    builder, x = c.builder, c.at(X, first)

    def unpack(a: Any, b: Any, item: int, high: bool) -> Any:
        items = 16 // item
        kind = ir.VectorType(ir.IntType(8 * item), PANEL // item)
        order = [
            lane * items + (items // 2 if high else 0) + i // 2 + (i % 2) * kind.count
            for lane in range(4)
            for i in range(items)
        ]
        mask = ir.Constant(ir.VectorType(I32, kind.count), order)
        mixed = builder.shuffle_vector(builder.bitcast(a, kind), builder.bitcast(b, kind), mask)
        return builder.bitcast(mixed, _bytes)

    with cgutils.for_range(builder, n_quads) as loop:
        start = c.at(x, builder.mul(loop.index, c.times(pitch, 4)))
        rows = [c.load(start, _bytes)]
        for _ in range(3):
            start = c.at(start, pitch)
            rows.append(c.load(start, _bytes))
        step = builder.mul(builder.lshr(loop.index, I64(4)), step_bytes)
        line = builder.mul(builder.and_(loop.index, I64(15)), I64(64))
        target = c.at(quads, step, line)
        for half in (False, True):
            first_two = unpack(rows[0], rows[1], 1, half)
            last_two = unpack(rows[2], rows[3], 1, half)
            for quarter in (False, True):
                tile = 2 * half + quarter
                c.store(unpack(first_two, last_two, 2, quarter), c.at(target, TILE_BYTES * tile))


@emitted_of_bytes
def column_magnitudes(c: Any, W: Any, n_rows: Any, pitch: Any, width: Any, out: Any) -> None:
    """Raise the 16 numbers of `out` to the magnitudes of `width` columns; NaN stays.

    `W` begins at the columns; its rows are `pitch` bytes apart.
    """
    builder = c.builder
    mask = c.first_lanes(width)
    found = cgutils.alloca_once_value(builder, c.load(out, _floats))
    with cgutils.for_range(builder, n_rows) as rows:
        row = c.load_lanes(c.at(W, builder.mul(rows.index, pitch)), mask)
        magnitude, so_far = c.call("llvm.fabs.v16f32", _floats, row), builder.load(found)
        stays = builder.fcmp_ordered(">=", so_far, magnitude)
        nan = builder.fcmp_unordered("uno", so_far, so_far)
        builder.store(builder.select(builder.or_(stays, nan), so_far, magnitude), found)
    c.store(builder.load(found), out)


@emitted_of_bytes
def pack_panel(
    c: Any, W: Any, n_rows: Any, pitch: Any, width: Any, factors: Any, packed: Any, sums: Any
) -> None:
    """Write `width` columns of a panel in digits, four features next to each other.

    The digits are added to `sums` (4, 16). `W`, `factors` and `packed` begin at the columns.
    """
    builder = c.builder
    factor, zero = c.load(factors, _floats), I64(0)
    base = ir.Constant(_floats, [BASE] * GROUP)
    low_byte = ir.Constant(_ints, [255] * GROUP)
    totals = [
        cgutils.alloca_once_value(builder, c.load(c.at(sums, 64 * digit), _ints))
        for digit in range(N_DIGITS)
    ]
    n_quads = builder.udiv(c.plus(n_rows, 3), I64(4))
    with cgutils.for_range(builder, n_quads) as loop:
        words: list[Any] = [None] * N_DIGITS
        for byte in range(4):
            row = c.plus(c.times(loop.index, 4), byte)
            exists = builder.icmp_signed("<", row, n_rows)
            mask = c.first_lanes(builder.select(exists, width, zero))
            address = c.at(W, builder.mul(row, pitch))
            rest = builder.fmul(c.load_lanes(address, mask), factor)
            for digit in range(N_DIGITS):
                rounded = c.call("llvm.rint.v16f32", _floats, rest)
                rest = builder.fmul(builder.fsub(rest, rounded), base)
                number = builder.fptosi(rounded, _ints)
                total = builder.load(totals[digit])
                builder.store(builder.add(total, number), totals[digit])
                number = builder.and_(number, low_byte)
                if byte == 0:
                    words[digit] = number
                else:
                    shift = ir.Constant(_ints, [8 * byte] * GROUP)
                    words[digit] = builder.or_(words[digit], builder.shl(number, shift))
        line = c.at(packed, c.times(loop.index, 64))
        for digit in range(N_DIGITS):
            c.store(words[digit], c.at(line, TILE_BYTES * digit))
    for digit in range(N_DIGITS):
        c.store(builder.load(totals[digit]), c.at(sums, 64 * digit))


@emitted_of_bytes
def add_tile(
    c: Any, sums: Any, scales: Any, dW: Any, first: Any, row_floats: Any, tile: Any
) -> None:
    """Put the digits of :func:`multiply_columns` together, and add them to 16 columns of dW.

    `first`: where the columns of the panel's first feature begin, in floats. `scales` begins at
    the group.
    """
    builder = c.builder
    lanes = range(GROUP)
    vectors = [c.number(sums, m) for m in lanes]
    c.transpose(vectors)
    scale = c.load(scales, _floats)
    dw = c.at(dW, c.times(first, 4))
    for place in lanes:
        feature = c.plus(c.times(tile, 4), place // 4 * 16 + place % 4)
        address = c.at(dw, c.times(builder.mul(feature, row_floats), 4))
        added = builder.fmul(vectors[place], scale)
        c.store(builder.fadd(c.load(address, _floats), added), address)


@emitted_of_bytes
def write_tile(c: Any, sums: Any, scales: Any, b: Any, Y: Any) -> None:
    """Put the digits of :func:`multiply_rows` together, add b, and write them to Y (16, 16).

    `scales` and `b` begin at the group.
    """
    builder = c.builder
    scale, bias = c.load(scales, _floats), c.load(b, _floats)
    for r in range(16):
        value = builder.fadd(builder.fmul(c.number(sums, r), scale), bias)
        c.store(value, c.at(Y, 4 * GROUP * r))


@emitted_of_bytes
def pack_samples(c: Any, B: Any, first: Any, pitch: Any, packed: Any, norms: Any) -> None:
    """Write 64 features of 16 samples less 128, four features next to each other.

    Their ``(b - 128) * (b + 128)`` are added to 16 numbers of `norms`. `first`: where they begin,
    in bytes. `packed` begins at their tile.
    """
    builder = c.builder
    row, vectors = c.at(B, first), []
    for _ in range(GROUP):
        vectors.append(c.load(row, _ints))
        row = c.at(row, pitch)
    c.transpose(vectors)
    top_bits = ir.Constant(_ints, [-0x7F7F7F80] * GROUP)  # 128 in each byte
    total = c.load(norms, _ints)
    for quad in range(GROUP):
        signed = builder.xor(vectors[quad], top_bits)
        c.store(signed, c.at(packed, 64 * quad))
        for unsigned in (vectors[quad], top_bits):
            total = c.add_dots(total, unsigned, signed)
    c.store(total, norms)


@emitted_of_bytes
def write_distances(
    c: Any, products: Any, tile: Any, row: Any, norm: Any, norms: Any, out: Any
) -> None:
    """Write ``norm + norms - 2 * products[tile, row]`` to 16 numbers of `out`."""
    builder = c.builder
    offset = builder.add(c.times(tile, TILE_BYTES), c.times(row, 64))
    twice = builder.shl(c.load(c.at(products, offset), _ints), ir.Constant(_ints, [1] * GROUP))
    norms_a = c.everywhere(builder.trunc(norm, I32), _ints)
    total = builder.add(norms_a, c.load(norms, _ints))
    c.store(builder.sub(total, twice), out)


@compiled
def _power_of_two(largest: Any) -> Any:
    """Return the power of two that brings numbers up to `largest` below 127."""
    exponent = 0.0
    if largest > 0:
        exponent = float(np.floor(np.log2(np.float64(LARGEST) / largest)))
    return np.float32(2.0 ** min(max(exponent, -MAX_EXPONENT), MAX_EXPONENT))


@compiled
def _scale_of(largest: Any, base: float) -> Any:
    """Return what numbers up to `largest` are divided by to fit the first digit."""
    if base == BASE:
        return np.float32(1) / _power_of_two(largest)
    return max(largest / np.float32(LARGEST), np.float32(2.0**-MAX_EXPONENT))


@compiled
def _zeros(n_bytes: int) -> Any:
    """Return bytes that begin where a cache line does: tiles are loaded by lines."""
    room = np.zeros(n_bytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + n_bytes]


@compiled
def pack(W: Any, first: int, stop: int) -> Any:
    """Write the columns first:stop of W in digits.

    Parameters
    ----------
    W : float32 array of shape (D, M)
    first, stop : int

    Returns
    -------
    is_finite : bool
        Without NaN or infinity, which digits cannot say.
    weights : (packed, scales, begins)
        The digits, int8 of shape (panels, groups, 4, 16, 16, 4); the columns' scales, float32 of
        shape (groups, 16); and what sums over the features begin with, so that bytes count from
        128, int32 of shape (groups, 4, 16).
    """
    n_features, n_columns = len(W), stop - first
    n_panels = (n_features + PANEL - 1) // PANEL
    n_groups = (n_columns + GROUP - 1) // GROUP
    packed = _zeros(n_panels * n_groups * GROUP_BYTES).view(np.int8)
    packed = packed.reshape((n_panels, n_groups, N_DIGITS, 16, 16, 4))
    scales = np.ones((n_groups, GROUP), np.float32)
    begins = _zeros(n_groups * N_DIGITS * 64).view(np.int32).reshape((n_groups, N_DIGITS, GROUP))
    factors = np.zeros((n_groups, GROUP), np.float32)
    largest, pitch = np.zeros((n_groups, GROUP), np.float32), W.strides[0]
    for panel in range(n_panels):  # outermost: a column alone would touch every page of W
        row = panel * PANEL
        for group in range(n_groups):
            column = first + group * GROUP
            width = min(GROUP, stop - column)
            height = min(PANEL, n_features - row)
            column_magnitudes(W[row:, column:], height, pitch, width, largest[group])
    for group in range(n_groups):
        for m in range(GROUP):
            factors[group, m] = _power_of_two(largest[group, m])
            scales[group, m] = 1 / factors[group, m]
    for panel in range(n_panels):
        row = panel * PANEL
        for group in range(n_groups):
            column = first + group * GROUP
            width = min(GROUP, stop - column)
            height = min(PANEL, n_features - row)
            pack_panel(
                W[row:, column:], height, pitch, width, factors[group], packed[panel, group],
                begins[group],
            )  # fmt: skip
    begins *= -128
    return bool(np.isfinite(largest).all()), (packed, scales, begins)


@compiled
def _multiply(X: Any, weights: Any, b: Any, row: int, group: int, sums: Any, Y: Any) -> None:
    """Write ``(X - 128) @ W + b`` of 16 rows and a group of columns to the tile Y (16, 16)."""
    packed, scales, begins = weights
    n_panels, n_groups = packed.shape[:2]
    n_features = X.shape[1]
    multiply_rows(
        X, row * n_features, n_features, packed, group * GROUP_BYTES, n_groups * GROUP_BYTES,
        n_panels, begins, sums,
    )  # fmt: skip
    write_tile(sums, scales[group], b[group * GROUP :], Y)


@compiled
def _sums() -> Any:
    return _zeros(GROUP_BYTES).view(np.int32).reshape((N_DIGITS, 16, 16))


@compiled
def _room_for_digits(n_steps: int, n_columns: int, n_rows: int) -> Any:
    """Return what :func:`digits_of_rows` fills; what it does not write stays zero.

    digits : (steps of 64, rows of digits, 64); begins : (rows of digits, 16); scales : (columns,).
    """
    digits = _zeros(n_steps * n_rows * PANEL).view(np.int8)
    begins = _zeros(n_rows * 64).view(np.int32)
    return (
        digits.reshape((n_steps, n_rows, PANEL)),
        begins.reshape((n_rows, 16)),
        np.zeros(n_columns, np.float32),
    )


@compiled
def clear_columns(S: Any, first: int) -> None:
    """Write zeros behind the samples of a block that is not full."""
    for c in range(len(S)):
        for r in range(first, S.shape[1]):
            S[c, r] = 0


@compiled
def digits_of_rows(
    G: Any, n_items: int, room: Any, n_digits: int, base: float, width: int, left: Any
) -> None:
    """Write the rows of G (M, N) in digits.

    Parameters
    ----------
    G : float32 array of shape (M, N)
        Zero from `n_items` on.
    n_items : int
    room : (digits, begins, scales)
        Of zeros, as :func:`_room_for_digits` makes it. `width` rows of G have their first digits
        next to each other, then their second ones, and so on. What sums begin with, so that bytes
        count from 128, stands there 16 times.
    n_digits : int
    base : float
    width : int
    left : float32 array of shape (M, 64) or (0, 64)
        What the digits leave of an item is added to the one 64 items later, also of the next call:
        else equal items, or neighbours of equal samples, would all lose the same.
    """
    digits, begins, scales = room
    n_columns, n_rows = G.shape
    step_down, smallest = np.float32(base), np.float32(base ** float(-n_digits))
    rest = np.empty(PANEL, np.float32)
    for m in range(n_columns):
        largest, largest_left = np.float32(0), np.float32(0)
        for r in range(n_rows):
            largest = max(largest, abs(G[m, r]))
        if len(left):
            for r in range(PANEL):
                largest_left = max(largest_left, abs(left[m, r]))
        largest += largest_left
        scale = _scale_of(largest, base)
        scales[m] = scale
        place = m // width * n_digits * width + m % width
        for digit in range(n_digits):  # lane by lane: numba takes seconds to compile broadcasting
            for lane in range(16):
                begins[place + digit * width, lane] = 0
        for step in range((n_rows + PANEL - 1) // PANEL):
            first = step * PANEL
            height = min(PANEL, n_rows - first)
            n_carried = min(height, n_items - first) if len(left) else 0
            for r in range(height):
                rest[r] = G[m, first + r] / scale
            for r in range(n_carried):
                rest[r] += left[m, r] / scale
            for digit in range(n_digits):
                total = np.int32(0)
                for r in range(height):
                    rounded = np.rint(rest[r])
                    rest[r] = (rest[r] - rounded) * step_down
                    number = np.int8(rounded)
                    digits[step, place + digit * width, r] = number
                    total += number
                for lane in range(16):
                    begins[place + digit * width, lane] -= 128 * total
            for r in range(n_carried):
                left[m, r] = rest[r] * smallest * scale


@compiled
def _add_columns(
    X: Any, first_row: Any, n_rows: Any, gradient: Any, quads: Any, sums: Any, dW: Any,
    first_column: Any,
) -> None:  # fmt: skip
    """Add ``(X - 128)^T @ G^T`` of `n_rows` rows to columns of dW (D padded, M padded)."""
    digits, begins, scales = gradient
    n_groups, n_features = digits.shape[1] // GROUP_ROWS, X.shape[1]
    n_steps = (n_rows + PANEL - 1) // PANEL
    for panel in range(len(dW) // PANEL):
        first = first_row * n_features + panel * PANEL
        interleave(X, first, n_features, quads, 4 * TILE_BYTES, (n_rows + 3) // 4)
        for tile in range(4):
            for group in range(n_groups):
                multiply_columns(
                    digits, group * GROUP_BYTES, n_groups * GROUP_BYTES, quads, tile, n_steps,
                    begins[group * GROUP_ROWS :], sums,
                )  # fmt: skip
                add_tile(
                    sums, scales[group * GROUP :], dW,
                    panel * PANEL * dW.shape[1] + first_column + group * GROUP, dW.shape[1], tile,
                )  # fmt: skip


@compiled
def whole_rows(X: Any, first: int, n_rows: int) -> Any:
    """Return X and `first`, or a copy of its last rows: tiles read beyond them."""
    n_features = X.shape[1]
    panels = (n_features + PANEL - 1) // PANEL * PANEL
    if (first + n_rows - 1) * n_features + panels <= X.size:
        return X, first
    copied = np.zeros((n_rows + PANEL, n_features), np.uint8)
    for r in range(min(n_rows, len(X) - first)):
        for d in range(n_features):
            copied[r, d] = X[first + r, d]
    return copied, 0


@compiled
def zeros_of_W(n_panels: int, n_groups: int) -> Any:
    """Return room for dW in whole tiles."""
    n_rows, n_columns = n_panels * PANEL, n_groups * GROUP
    return _zeros(4 * n_rows * n_columns).view(np.float32).reshape((n_rows, n_columns))


@compiled
def affine_of_bytes(X: Any, weights: Any, b: Any, Y: Any, first_column: int) -> None:
    """Write columns of ``(X - 128) @ W + b`` to Y (N, M), as many as were packed.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
        Contiguous.
    weights : tuple
        Columns of W (D, M), as :func:`pack` writes them.
    b : float32 array of shape (M,)
    Y : float32 array of shape (N, M)
    first_column : int
        Of those packed.
    """
    begin(TILE_SHAPES)
    n_rows, n_columns = len(Y), min(weights[0].shape[1] * GROUP, Y.shape[1] - first_column)
    n_groups = weights[0].shape[1]
    sums, tile = _sums(), np.empty((16, GROUP), np.float32)
    bias = np.zeros(n_groups * GROUP, np.float32)
    bias[:n_columns] = b[first_column : first_column + n_columns]
    last = (n_rows - 1) // 16 * 16
    x, first = whole_rows(X, last, 16)
    for group in range(n_groups):  # outermost, because its digits just fit L2
        column = group * GROUP
        width = min(GROUP, n_columns - column)
        for row in range(0, n_rows, 16):
            if row < last:
                _multiply(X, weights, bias, row, group, sums, tile)
            else:
                _multiply(x, weights, bias, first, group, sums, tile)
            height = min(16, n_rows - row)
            start = first_column + column
            Y[row : row + height, start : start + width] = tile[:height, :width]
    end()


@compiled
def gradient_of_bytes(X: Any, dY: Any, dW: Any, first: int, stop: int) -> bool:
    """Add the columns first:stop of ``(X - 128)^T @ dY`` to dW, and tell whether they are finite.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
        Contiguous.
    dY : float32 array of shape (N, M)
    dW : float32 array of shape (D padded, M padded)
        As :func:`zeros_of_W` makes it.
    first, stop : int
        `first` begins a group.
    """
    n_rows, n_columns = len(dY), stop - first
    n_groups, n_steps = (n_columns + GROUP - 1) // GROUP, 2 * BLOCK_ROWS // PANEL
    sums, quads = _sums(), _zeros(n_steps * 4 * TILE_BYTES)
    gradient = _room_for_digits(n_steps, n_groups * GROUP, n_groups * GROUP_ROWS)
    G = np.zeros((n_columns, n_steps * PANEL), np.float32)
    zero = np.float32(0)
    begin(TILE_SHAPES)
    for row in range(0, n_rows, n_steps * PANEL):
        rows = min(n_steps * PANEL, n_rows - row)
        G[:, rows:] = 0
        for m in range(n_columns):
            for r in range(rows):
                G[m, r] = dY[row + r, first + m]
                zero += G[m, r] * np.float32(0)
        x, x_row = whole_rows(X, row, (rows + 3) // 4 * 4)
        digits_of_rows(G, G.shape[1], gradient, N_DIGITS, BASE, GROUP, G[:0])
        _add_columns(x, x_row, rows, gradient, quads, sums, dW, first)
    end()
    return bool(zero == 0)


@compiled
def linear_pass(
    X: Any, weights: Any, b: Any, y: Any, sample_weight: Any, start: int, stop: int, dW: Any,
    db: Any, room: Any, hinge: bool,
) -> float:  # fmt: skip
    """Add the gradients of the rows start:stop to dW (D, C) and db (C,), and return their loss.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
        Contiguous; bytes count from 128.
    weights : tuple
        W (D, C) as :func:`pack` writes it.
    b, y, sample_weight : array
    start, stop : int
    dW, db : float32 array
    room : tuple
        Of ``BLOCK_ROWS`` rows, for :func:`~gpuclf.kernels.losses.loops.gradient_in_place`.
    hinge : bool
        The loss: else softmax cross-entropy.
    """
    begin(TILE_SHAPES)
    packed = weights[0]
    n_classes, n_groups, n_steps = len(b), packed.shape[1], BLOCK_ROWS // PANEL
    S = np.zeros((n_groups * GROUP, BLOCK_ROWS), np.float32)
    tile, bias = np.empty((16, GROUP), np.float32), np.zeros(n_groups * GROUP, np.float32)
    bias[:n_classes] = b
    sums, quads = _sums(), _zeros(n_steps * 4 * TILE_BYTES)
    gradient = _room_for_digits(n_steps, n_groups * GROUP, n_groups * GROUP_ROWS)
    padded_dW = zeros_of_W(packed.shape[0], n_groups)
    sum_of_S, no_bias = np.zeros(n_classes), np.zeros(n_classes, np.float32)
    loss = 0.0
    for row in range(start, stop, BLOCK_ROWS):
        n_rows = min(BLOCK_ROWS, stop - row)
        x, first = whole_rows(X, row, (n_rows + 15) // 16 * 16)
        for r in range(0, n_rows, 16):
            for group in range(n_groups):
                _multiply(x, weights, bias, first + r, group, sums, tile)
                for i in range(16):
                    for c in range(GROUP):
                        S[group * GROUP + c, r + i] = tile[i, c]
        loss += gradient_in_place(
            S[:n_classes], 0, no_bias, y, sample_weight, row, n_rows, n_classes - 1, sum_of_S,
            room, hinge,
        )  # fmt: skip
        clear_columns(S, n_rows)
        digits_of_rows(S[:n_classes], BLOCK_ROWS, gradient, N_DIGITS, BASE, GROUP, S[:0])
        _add_columns(x, first, n_rows, gradient, quads, sums, padded_dW, 0)
    end()
    if not np.isfinite(loss):  # digits cannot say NaN
        dW[:] = np.nan
        db[:] = np.nan
    else:
        dW += padded_dW[: len(dW), :n_classes]
        db += sum_of_S.astype(np.float32)
    return loss


@compiled
def squared_euclidean(A: Any, B: Any, norms: Any, out: Any, column: int) -> None:
    """Write the squared distances between the rows of A and of B, all of them bytes.

    Parameters
    ----------
    A : uint8 array of shape (N, D)
    B : uint8 array of shape (M, D)
        N a multiple of 16, M of 64 and D of 64, contiguous.
    norms : int32 array of shape (N,)
        ``sum((a - 128)**2)``.
    out : int32 array of shape (N, M or more)
    column : int
        Of `out`, where they begin.
    """
    n_features = A.shape[1]
    n_panels, group = n_features // PANEL, N_DIGITS * GROUP  # tiles of samples instead of digits
    packed = _zeros(n_panels * GROUP_BYTES).view(np.int8)
    begins, products = _zeros(GROUP_BYTES).view(np.int32), _sums()
    norms_B = np.zeros(group, np.int32)
    begin(TILE_SHAPES)
    for first in range(0, len(B), group):
        norms_B[:] = 0  # with the products of a and b - 128: |a - b|^2 to the last digit
        for tile in range(N_DIGITS):
            start = (first + tile * GROUP) * n_features
            for panel in range(n_panels):
                place = panel * GROUP_BYTES + tile * TILE_BYTES
                pack_samples(
                    B, start + panel * PANEL, n_features, packed[place:], norms_B[tile * GROUP :]
                )
        for row in range(0, len(A), 16):
            multiply_rows(
                A, row * n_features, n_features, packed, 0, GROUP_BYTES, n_panels, begins, products
            )
            for r in range(16):
                for tile in range(N_DIGITS):
                    write_distances(
                        products, tile, r, norms[row + r], norms_B[tile * GROUP :],
                        out[row + r, column + first + tile * GROUP :],
                    )  # fmt: skip
    end()
