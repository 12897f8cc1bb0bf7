import pytest

from lwc_compiler.errors import AccuracyGateError, GateError, SpeedGateError
from lwc_compiler.gates import GateResult, raise_failed


def result(name, kind, verdict):
    return GateResult(name, kind, "", 1.0, 2.0, "", None, verdict, f"{name} of it")


def test_the_first_kind_decides_and_all_are_named():
    failed = [result("min_speedup", "speed", "failed"), result("min_metric", "accuracy", "failed")]
    with pytest.raises(AccuracyGateError, match=r"2 gates failed; .* in out\n  min_speedup of it\n  min_metric of it"):
        raise_failed(failed, "out")
    with pytest.raises(SpeedGateError, match="a gate failed"):
        raise_failed(failed[:1], "out")


def test_nothing_but_a_failure_is_raised():
    raise_failed([result("min_metric", "accuracy", verdict) for verdict in ("passed", "warned", "skipped")], "out")


def test_every_kind_has_an_exit_code_of_its_own():
    codes = [error.exit_code for error in (GateError, *GateError.__subclasses__())]
    assert codes == list(range(20, 26))
