"""Skip what a machine lacks, except where it has to be there."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where CI sets GPUCLF_REQUIRE_COMPILERS."""
    if os.environ.get("GPUCLF_REQUIRE_COMPILERS"):
        pytest.fail(f"{what}, and GPUCLF_REQUIRE_COMPILERS is set")
    pytest.skip(what)
