"""Fusion for GPUs beyond TVM's: what is computed along the same rows becomes one function.

TVM fuses nothing behind a reduction, so a layer normalization in the operators of an exporter is four functions. Here a
call that `device_rows` can read takes in the calls that follow from it, and those whose results it alone reads, as long
as the whole can still be read and a row stays in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import tvm
from tvm import relax, tirx
from tvm.relax import TupleGetItem, VarBinding
from tvm.relax.analysis import free_vars

from lwc_compiler.codegen.device_row_kernels import row_tile
from lwc_compiler.codegen.device_rows import read_points, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvm.ir import Expr

# What each member calls and the numbers of the values that it reads, and the numbers of those that others read.
_Key: TypeAlias = tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...]]


def fuse_rows(module: tvm.IRModule) -> tvm.IRModule:
    """The module with functions merged.

    Args:
        module: as `legalize` gives it: `main` is a straight list of calls.
    """
    return _Fusion(module).fused()


class _Fusion:
    """The bindings of `main`, while they become fewer."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.builder = relax.BlockBuilder(module)
        self.main = module["main"]
        self.bindings = [binding for block in self.main.body.blocks for binding in block.bindings]
        self.reads = {binding.var: set(free_vars(binding.value)) for binding in self.bindings}
        self.results = set(free_vars(self.main.body.body))
        self.merged: dict[_Key, Expr | None] = {}

    def fused(self) -> tvm.IRModule:
        tried: set[Expr] = set()
        while (first := next((b for b in self.bindings if b.var not in tried and _is_call(b)), None)) is not None:
            tried.add(first.var)
            function = self.builder.get()[first.value.args[0]]
            along_rows = read_rows(function) is not None
            if along_rows or read_points(function) is not None:
                group = self.with_producers(self.with_readers(first) if along_rows else [first])
                if sum(map(_is_call, group)) > 1:
                    tried |= self.replace(group)
        body = relax.SeqExpr([relax.DataflowBlock(self.bindings)], self.main.body.body)
        main = relax.Function(self.main.params, body, self.main.ret_ty, attrs=self.main.attrs)
        module = self.builder.get()
        module.update_func(module.get_global_var("main"), main)
        return module

    def with_readers(self, first: VarBinding) -> list[VarBinding]:
        """The call and all that can be computed with it of what follows from it."""
        group, mine = [first], {first.var}
        behind: set[Expr] = set()  # what follows from it and is no member
        for binding in self.bindings[self.bindings.index(first) + 1 :]:
            read = self.reads[binding.var]
            if not read & (mine | behind):
                continue
            if not read & behind and self.joins(binding, group):
                group.append(binding)
                mine.add(binding.var)
            else:
                behind.add(binding.var)
        return group

    def with_producers(self, group: list[VarBinding]) -> list[VarBinding]:
        """The group and the calls before it whose results it alone reads."""
        for binding in reversed(self.bindings[: self.bindings.index(group[-1])]):
            mine = {member.var for member in group}
            readers = {var for var, read in self.reads.items() if binding.var in read}
            if binding.var in mine | self.results or not readers or not readers <= mine:
                continue
            if self.joins(binding, group):
                group = [each for each in self.bindings if each.var in mine | {binding.var}]
        return group

    def joins(self, binding: VarBinding, group: Sequence[VarBinding]) -> bool:
        """Whether a binding can be computed with a group."""
        if isinstance(binding.value, TupleGetItem):
            return True
        together = {member.var for member in (*group, binding)}
        return _is_call(binding) and self.function([b for b in self.bindings if b.var in together]) is not None

    def outputs(self, group: Sequence[VarBinding]) -> list[Expr]:
        """What others read."""
        mine = {member.var for member in group}
        others = self.results.union(*(read for var, read in self.reads.items() if var not in mine))
        return [member.var for member in group if member.var in others]

    def function(self, group: Sequence[VarBinding]) -> Expr | None:
        """The function that computes a group; None when it is not one whose rows stay in registers."""
        outputs = self.outputs(group)
        if any(isinstance(output.ty, relax.TupleType) for output in outputs):
            return None
        arguments = _arguments(group)
        numbers = {value: number for number, value in enumerate([*arguments, *(member.var for member in group)])}
        called = tuple((_name(member), tuple(numbers[value] for value in _operands(member))) for member in group)
        key = called, tuple(numbers[output] for output in outputs)
        if key not in self.merged:
            func = _merge(self.builder.get(), group, arguments, outputs)
            rows = read_rows(func) or read_points(func)
            self.merged[key] = None
            if rows is not None and row_tile(rows).unrolled:
                name = "_".join(name.removeprefix("fused_") for name, _ in called if not name.isdecimal())
                self.merged[key] = self.builder.add_func(func, f"fused_{name}")
        return self.merged[key]

    def replace(self, group: Sequence[VarBinding]) -> set[Expr]:
        """Puts the call of one function where the last member is, and behind it what follows from the group.

        Returns:
            The variables that are new or keep their value.
        """
        function = self.function(group)
        outputs = self.outputs(group)
        types = [output.ty for output in outputs]
        call = relax.call_tir(function, relax.Tuple(_arguments(group)), types if len(types) > 1 else types[0])
        if len(outputs) == 1:
            new = [VarBinding(outputs[0], call)]
        else:
            results = relax.DataflowVar("rows", relax.TupleType(types))
            new = [VarBinding(results, call)]
            new += [VarBinding(output, TupleGetItem(results, i)) for i, output in enumerate(outputs)]
        mine = {member.var for member in group}
        last = self.bindings.index(group[-1])
        ahead, follows = [], [*new]
        behind = set(mine)
        for binding in self.bindings[:last]:
            if binding.var in mine:
                continue
            if self.reads[binding.var] & behind:
                behind.add(binding.var)
                follows.append(binding)
            else:
                ahead.append(binding)
        self.bindings = [*ahead, *follows, *self.bindings[last + 1 :]]
        for var in mine:
            del self.reads[var]
        self.reads |= {binding.var: set(free_vars(binding.value)) for binding in new}
        return {binding.var for binding in new}


def _is_call(binding: VarBinding) -> bool:
    """Whether a TIR function is called."""
    value = binding.value
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir"


def _name(member: VarBinding) -> str:
    """Of the function that is called, or the number where a tuple is taken apart."""
    return str(member.value.args[0].name_hint) if _is_call(member) else str(member.value.index)


def _operands(member: VarBinding) -> list[Expr]:
    return list(member.value.args[1].fields) if _is_call(member) else [member.value.tuple_value]


def _arguments(group: Sequence[VarBinding]) -> list[Expr]:
    """What a group reads of others, each once."""
    mine = {member.var for member in group}
    return list(dict.fromkeys(value for member in group for value in _operands(member) if value not in mine))


def _merge(
    module: tvm.IRModule, group: Sequence[VarBinding], arguments: Sequence[Expr], outputs: Sequence[Expr]
) -> tirx.PrimFunc:
    """One function of the arguments that computes the outputs."""
    calls = [member.value.args[0] for member in group if _is_call(member)]
    builder = relax.BlockBuilder(tvm.IRModule({name: module[name] for name in calls}))
    parameters = [relax.Var(f"p{i}", argument.ty) for i, argument in enumerate(arguments)]
    values: dict[Expr, Expr] = dict(zip(arguments, parameters, strict=True))
    with builder.function("rows", parameters, {"Primitive": True}, private=True):
        with builder.dataflow():
            for member in group:
                operands = [values[value] for value in _operands(member)]
                if _is_call(member):
                    call = member.value
                    value = relax.Call(call.op, [call.args[0], relax.Tuple(operands)], call.attrs, call.ty_args)
                else:
                    value = TupleGetItem(operands[0], member.value.index)
                values[member.var] = builder.emit(value)
            results = [values[output] for output in outputs]
            result = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(result)
    rows = builder.get().get_global_var("rows")
    parameters = [relax.Var(f"p{i}", argument.ty) for i, argument in enumerate(arguments)]
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(rows, parameters))
        builder.emit_func_output(result)
    return relax.transform.FuseTIR()(builder.get())["rows"]
