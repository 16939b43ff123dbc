"""Errors say what is wrong, and what works instead; docs/errors.md lists them."""

import bad_inputs
import pytest

CASES = [case for cases in bad_inputs.CASES.values() for case in cases]

pytestmark = [
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:early stopping|overflow"),
]


@pytest.fixture(scope="module", autouse=True)
def files():
    with bad_inputs.files():
        yield


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.call)
def test_the_message_says_what_is_wrong_and_its_advice_works(case):
    error, message = bad_inputs.raised(case)
    if not case.call.startswith("gpuclf "):
        assert isinstance(error, case.error)
    assert case.words in message
    if case.remedy:
        bad_inputs.run(case.remedy)


@pytest.mark.slow
def test_the_page_is_that_of_the_table():
    assert bad_inputs.PAGE.read_text(encoding="utf-8") == bad_inputs.page(), (
        "write it with: python tests/bad_inputs.py"
    )
