import pytest
from harness import TARGETS, build


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", metafunc.cls.cases, ids=lambda case: case.name)


@pytest.fixture(scope="class", params=TARGETS, ids=lambda target: target.name)
def built(request, tmp_path_factory):
    """All cases of the class, compiled for one target."""
    return build(request.cls.cases, request.param, tmp_path_factory.mktemp("kernels"))
