"""The ONNX project's backend tests; what is left out, and why, is in exclusions.py."""

import re
import warnings

import pytest
from onnx.backend.test import BackendTest

from tests.onnx_backend.backend import LwcBackend
from tests.onnx_backend.cases import collect
from tests.onnx_backend.exclusions import EXCLUDED

# In one process: tests are compiled in groups.
pytestmark = pytest.mark.xdist_group("onnx_backend")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package computes its references with overflows and divisions by 0
    backend_test = BackendTest(LwcBackend, __name__)
backend_test.exclude("_cuda$")
for each in EXCLUDED:
    backend_test.exclude(each)
globals().update(backend_test.test_cases)


@pytest.mark.parametrize("pattern", EXCLUDED)
def test_every_exclusion_excludes_something(pattern):
    assert any(re.search(pattern, name) for name in collect())
