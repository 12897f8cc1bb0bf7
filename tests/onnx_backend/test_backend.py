"""The ONNX project's backend tests; what is left out, and why, is in exclusions.py."""

import re
import unittest

from onnx.backend.test import BackendTest

from tests.onnx_backend.backend import LwcBackend
from tests.onnx_backend.exclusions import EXCLUDED

backend_test = BackendTest(LwcBackend, __name__)
backend_test.exclude("_cuda$")
for pattern in EXCLUDED:
    backend_test.exclude(pattern)
globals().update(backend_test.enable_report().test_cases)
