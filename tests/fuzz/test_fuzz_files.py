"""A short run of the fuzzing: the corpus, mutations of it, and inputs that Hypothesis makes."""

import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuclf.bench.report import schema
from gpuclf.datasets.strict_pickle import ForbiddenPickleError, MalformedPickleError, read_pickle

from .fuzz import fuzz
from .targets import CORPUS, TARGETS, with_right_sums

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=1_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

CASES = [(name, path.name) for name in TARGETS for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize(("target", "file"), CASES)
def test_the_corpus(target, file):
    TARGETS[target][0]((CORPUS / target / file).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_of_the_corpus(target):
    assert fuzz(target, 300, seed=1, grow=False) == (None, "")


def test_a_parser_that_fails_is_found(monkeypatch):
    def read(data):
        assert len(data) % 7, "a length that it cannot bear"

    _, module, mended = TARGETS["pickle"]
    monkeypatch.setitem(TARGETS, "pickle", (read, module, mended))
    data, why = fuzz("pickle", 300, seed=0, grow=False)
    assert len(data) % 7 == 0
    assert "a length that it cannot bear" in why


@given(st.binary(max_size=2_000))
def test_any_bytes_as_a_pickle(data):
    TARGETS["pickle"][0](data)


@given(st.binary(max_size=3_000))
def test_any_bytes_as_a_tar(data):
    TARGETS["tar"][0](with_right_sums(data))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
ROW_KEYS = [*schema.ROW.schemas, "other"]


@given(st.binary(max_size=500))
def test_any_bytes_as_a_record_and_a_break_even(data):
    TARGETS["record"][0](data)
    TARGETS["break_even"][0](data)


@pytest.mark.slow
@given(
    st.lists(st.dictionaries(st.sampled_from(ROW_KEYS), json_values, max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(list(schema.RECORD.schemas)), json_values, max_size=2),
)
def test_records_with_any_value_at_any_key(changes, of_record):
    row = {"operation": "a", "implementation": "gpuclf", "times_s": [1.0, 2.0, 1.5]}
    rows = [row | {"samples": i + 1} | changed for i, changed in enumerate(changes)]
    TARGETS["record"][0](json.dumps({"version": 3, "rows": rows} | of_record).encode())


values = st.one_of(st.integers(-(2**31), 2**31 - 1), st.booleans(), st.none(), st.binary())
texts = st.text(st.characters(exclude_categories=["Cs"]))
entries = st.one_of(values, texts, st.lists(st.one_of(values, texts)))


@given(st.dictionaries(st.one_of(st.binary(), texts), entries), st.integers(2, 5))
def test_what_a_batch_may_hold_is_read_as_it_was(content, protocol):
    assert read_pickle(pickle.dumps(content, protocol)) == content


@given(st.integers(0, 5), st.integers(0, 5), st.sampled_from("CF"), st.integers(2, 5), st.randoms())
def test_arrays_of_bytes_are_read_as_they_were(n, d, order, protocol, random):
    data = np.frombuffer(random.randbytes(n * d), np.uint8).reshape(n, d).copy(order)
    read = read_pickle(pickle.dumps({"data": data}, protocol))["data"].array
    np.testing.assert_array_equal(read, data)


anything = st.recursive(
    st.one_of(values, texts, st.floats(), st.complex_numbers()),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner)
    ),
)


@pytest.mark.slow
@given(anything, st.integers(0, 5))
def test_any_other_pickle_is_read_or_refused(content, protocol):
    try:
        read = read_pickle(pickle.dumps(content, protocol))
    except (ForbiddenPickleError, MalformedPickleError):
        return
    assert read == content
