import functools
import os
import pickle
import struct
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from cifar_files import (
    message_for,
    no_data_but_the_test_s_own,  # noqa: F401
    string,
)

from gpuclf.datasets.strict_pickle import ForbiddenPickleError, MalformedPickleError, read_pickle


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.essential_cases(12)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (functools.partial, "functools.partial"),
        (np.load, "numpy.load"),
    ],
)
def test_calls_of_anything_else_are_refused_and_not_made(tmp_path, protocol, function, name):
    trace = tmp_path / "trace"
    command = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    nested = {b"data": [({b"x": Calls(function, command)},)], b"labels": []}
    message = message_for(
        tmp_path / "data", "python", "data_batch_2", pickle.dumps(nested, protocol=protocol)
    )
    assert "is not CIFAR-10" in message
    # Protocols 0 and 1 have instructions of their own, which come before the name.
    assert f"{name}, which" in message or (protocol < 2 and "the instruction" in message)
    assert "Do not open this file with pickle" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0eobject.__new__\x93.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy.testing._private.utils\nrunstring\n.",
    ],
)
def test_every_opcode_that_names_a_global_is_refused(tmp_path, program):
    message = message_for(tmp_path, "python", "batches.meta", program)
    assert "is not CIFAR-10" in message


@pytest.mark.parametrize(
    "program",
    [
        # ndarray and dtype called, or given a state, as NumPy never writes it.
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy\nndarray\n}S'a'\nI1\nsb.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\ndtype\n((lS'u1'\nS'O'\nttR.",
        b"cnumpy\ndtype\n}S'a'\nI1\nsb.",
        b"cnumpy.core.multiarray\n_reconstruct\nN}S'__call__'\nI1\ns\x86b.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I-1\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS''\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I9\ntcnumpy\ndtype\n(S'u1'\ntRI00\nS'a'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(tRNb.",
        b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.",
        b"}cnumpy\ndtype\n}}SbR.",
        b"\x80\x02](]a.",
        b"\x80\x02}).",
        # Memory, memo and persistent objects.
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"h\x07.",
        b"S'a'\nQ.",
        b"\x82\x01.",
    ],
)
def test_forged_arrays_and_other_tricks_are_refused(tmp_path, program):
    message_for(tmp_path, "python", "batches.meta", program)


def test_arrays_without_a_state_are_refused(tmp_path):
    program = b"}(" + string(b"data") + b"cnumpy.core.multiarray\n_reconstruct\n(tRu."
    assert "expected b'data'" in message_for(tmp_path, "python", "data_batch_1", program)


def doubled(n):
    """A tuple of two tuples, each of which is the same tuple of two tuples, and so on."""
    return b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(n))


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize(
    ("program", "found"),
    {
        "huge memo index": (b"\x80\x02]r" + struct.pack("<I", 1 << 27) + b".", "memo entries"),
        "memo entries": (b"\x80\x04N" + b"\x94" * 200_000 + b".", "memo entries"),
        "deep tuples": (b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "a tuple in a tuple"),
        "deep lists": (b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".", "a list in a list"),
        "deep dicts": (b"\x80\x02" + b"}N" * 40_000 + b"s" * 39_999 + b".", "not a dict"),
        "deep marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "instructions"),
        "marks of tuples": (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "a tuple in a t"),
        "nothing, often": (b"\x80\x02" + b"N" * 10_000_000 + b".", "instructions"),
        "doubled tuples": (doubled(60) + b"cnumpy\ndtype\nh\x3c\x85R.", "a tuple in a tuple"),
        "doubled as a key": (b"\x80\x02}" + doubled(60)[2:] + b"Ns.", "a tuple in a tuple"),
        "a list in itself": (b"\x80\x02]q\x00h\x00a.", "a list in a list"),
        "a dict in itself": (b"\x80\x02}q\x00N h\x00s.".replace(b" ", b""), "as a key"),
        "bytes made of one text often": (
            b"\x80\x02c_codecs\nencode\nq\x00X\xa0\x86\x01\x00"
            + b"a" * 100_000
            + b"X\x06\x00\x00\x00latin1\x86q\x01"
            + b"h\x00h\x01R" * 1_000
            + b".",
            "more bytes than the file has",
        ),
        "a long tuple": (b"\x80\x02(" + b"N" * 17 + b"t.", "more than 16 items"),
        "bytes of no end": (b"\x80\x02T\xff\xff\xff\x7f.", "ends too early"),
        "bytes of 2**64": (b"\x80\x05\x96" + b"\xff" * 8 + b".", "ends too early"),
        "a name of no end": (b"\x80\x02c" + b"a" * 1_000_000, "a name that does not end"),
        "a buffer from elsewhere": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "a long integer": (b"\x80\x02\x8b" + struct.pack("<I", 999_000) + bytes(999_000), "LONG4"),
        "digits": (b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.", "the instruction LONG"),
        "a new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        "not UTF-8": (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "not UTF-8"),
        "text that is no bytes": (
            b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
            "bytes that are none",
        ),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attacks_on_time_and_memory_are_refused(program, found):
    tracemalloc.start()
    try:
        with pytest.raises((ForbiddenPickleError, MalformedPickleError), match=found):
            read_pickle(program)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(program) + (64 << 20)
    finally:
        tracemalloc.stop()


def dumped(values, protocol):
    data = pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": values}, protocol)
    return data


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cut_short_anywhere_it_is_malformed(protocol):
    content = dumped([1, 2], protocol)
    for length in range(len(content)):
        with pytest.raises(MalformedPickleError):
            read_pickle(content[:length])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_flipped_bit_gives_a_value_or_an_error_of_ours(protocol):
    content = dumped([1, 2], protocol)
    outcomes = Counter()
    for i in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        try:
            outcomes[type(read_pickle(bytes(flipped)))] += 1
        except (ForbiddenPickleError, MalformedPickleError) as error:
            outcomes[type(error)] += 1
    assert outcomes[ForbiddenPickleError] > 50
    assert outcomes[MalformedPickleError] > 50


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_longest_form_of_a_real_batch_is_within_the_limits(protocol):
    batch = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": [i % 10 for i in range(10_000)],
        b"data": np.zeros((10_000, 3), np.uint8),
        b"filenames": [b"camion_s_%06d.png" % i for i in range(10_000)],
    }
    read = read_pickle(pickle.dumps(batch, protocol))
    assert read.pop(b"data").array.shape == (10_000, 3)
    del batch[b"data"]
    assert read == batch


@pytest.mark.parametrize("tail", [b".", b"\0", pickle.dumps({}, 2)])
def test_nothing_comes_after_the_end(tail):
    data = pickle.dumps({b"labels": [1]}, protocol=2)
    assert read_pickle(data) == {b"labels": [1]}
    with pytest.raises(MalformedPickleError, match="more after its end"):
        read_pickle(data + tail)
