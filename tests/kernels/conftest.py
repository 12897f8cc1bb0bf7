import pytest
from harness import SCALAR, build

from tests.cuda_harness import Emulator


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", metafunc.cls.cases, ids=lambda case: case.name)
    if "built" in metafunc.fixturenames:
        targets = [target for target in metafunc.cls.targets if target.vector_bits >= metafunc.cls.vector_bits]
        targets += [SCALAR] * metafunc.cls.scalar
        metafunc.parametrize("built", targets, indirect=True, scope="class", ids=lambda target: target.name)


@pytest.fixture(scope="class")
def built(request, tmp_path_factory):
    """All cases of the class, compiled for one target."""
    return build(request.cls.cases, request.param, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def emulator(request, tmp_path_factory):
    """The plans of the module's `CASES`, compiled as CUDA's text to one library."""
    plans = {name: case.plan for name, case in request.module.CASES.items()}
    return Emulator(plans, tmp_path_factory.mktemp("emulator"))
