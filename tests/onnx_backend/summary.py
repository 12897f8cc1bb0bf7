"""Writes docs/operators.md: what is lowered, and the counts of the ONNX project's tests.

Run: python -m tests.onnx_backend.summary > docs/operators.md
"""

from __future__ import annotations

import textwrap
import unittest
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

from lwc_compiler.codegen.converters import CONSTANT_INPUTS, CONVERTERS, DTYPES
from tests.onnx_backend import test_backend
from tests.onnx_backend.cases import collect
from tests.onnx_backend.exclusions import reason


def main() -> None:
    names = collect()
    excluded = Counter(why for name in names if (why := reason(name)))
    suite = unittest.TestSuite(_wanted(test_backend.backend_test.test_suite))
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite.run(result)
    failed = len(result.failures) + len(result.errors)
    passed = result.testsRun - failed - len(result.skipped)
    for case, trace in (*result.failures, *result.errors):
        raise SystemExit(f"{case}\n{trace}")
    print(_PAGE.format(
        onnx=onnx.__version__,
        total=passed + failed + sum(excluded.values()),
        passed=passed,
        excluded=sum(excluded.values()),
        failed=failed,
        reasons="\n".join(f"| {why} | {count} |" for why, count in excluded.most_common()),
        types=_list(DTYPES),
        converters=_list(sorted(CONVERTERS)),
        functions=_list(_by_definition(names)),
        constants="\n".join(f"| {name} | {_input_names(name)} |" for name in sorted(CONSTANT_INPUTS)),
    ), end="")  # fmt: skip


def _wanted(suite: Iterable[unittest.TestCase]) -> Iterator[unittest.TestCase]:
    """The tests of `suite` that run here: those for a CPU that are not excluded."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _wanted(item)
        elif item.id().endswith("_cpu") and reason(item.id().rpartition(".")[2]) is None:
            yield item


def _by_definition(names: Iterable[str]) -> list[str]:
    """Operators without a converter in the tests that pass."""
    used = set()
    for name in names:
        test = collect()[name]
        if reason(name) is None and test.model is not None:
            used |= {node.op_type for node in test.model.graph.node if _is_function(node)}
    return sorted(used - CONVERTERS.keys())


def _is_function(node: onnx.NodeProto) -> bool:
    schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    return schema.has_function or schema.has_context_dependent_function


def _list(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(f"`{name}`" for name in names), 118)


def _input_names(operator: str) -> str:
    inputs = onnx.defs.get_schema(operator).inputs
    return ", ".join(f"`{inputs[i].name}`" for i in CONSTANT_INPUTS[operator] if i < len(inputs))


_PAGE = """# Operators

What `lwc` lowers. Everything else is refused before any long work, with the node and the operator named. This page is
written by `python -m tests.onnx_backend.summary`.

## The ONNX project's own tests

The backend tests of onnx {onnx} (`onnx.backend.test`), compiled for the host and run: **{total} tests, {passed} passed,
{excluded} excluded, {failed} failed**. Excluded, by name, in `tests/onnx_backend/exclusions.py`:

| reason | tests |
|---|---|
{reasons}

Some tests give as inputs what `lwc` must know when compiling (see below); there those inputs are constants with the
values of the test.

## Types and shapes

{types}

float16 and bfloat16 become float32, inputs and outputs included. Every shape is static; open dimensions are fixed with
`--batch` and `--shape`. Operators whose outputs have a size that depends on values, sequences, optional values,
strings, and control flow that depends on the inputs are refused.

## Operators with code of their own

{converters}

## Operators lowered by their definition

ONNX defines them by simpler operators; functions that a model defines itself are lowered the same way.

{functions}

## Inputs that must be constant

Initializers, or computed from initializers and shapes. Other inputs may be anything.

| operator | inputs |
|---|---|
{constants}
"""

if __name__ == "__main__":
    main()
