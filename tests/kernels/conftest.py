import pytest
from harness import TARGETS, build


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def built(request, tmp_path_factory):
    """All cases of the module, compiled for one target."""
    return build(request.module.CASES, request.param, tmp_path_factory.mktemp("kernels"))
