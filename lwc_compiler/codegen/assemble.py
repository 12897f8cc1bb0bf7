"""From a Relax module to a stage of a program: legalize, fuse, schedule, and walk the straight line that is left."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx

from lwc_compiler.codegen.device_build import split_device
from lwc_compiler.codegen.device_fusion import fuse_rows
from lwc_compiler.codegen.kernel_build import split_function
from lwc_compiler.codegen.layers import layer_index
from lwc_compiler.codegen.program import BufferRef, Call, ConstantRef, Ref, Stage, passes_of
from lwc_compiler.codegen.result import StepInfo, TensorSpec
from lwc_compiler.codegen.schedules import schedule
from lwc_compiler.errors import UnsupportedError
from lwc_compiler.kernels.kernel import Constant, Input, Moving, Output, Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lwc_compiler.codegen.layers import Layer
    from lwc_compiler.kernels.kernel import Kernel, Operand, Plan
    from lwc_compiler.targets.target import Target

# What one core does in a step; good to a factor of two or three, which is all that the choice of threads needs.
_FLOPS_A_NANOSECOND = 60.0
BYTES_A_NANOSECOND = 30.0

Value: TypeAlias = "Ref | tuple[Value, ...]"


def legalize(module: tvm.IRModule) -> tvm.IRModule:
    """Operators to TIR functions, fused; `main` becomes a straight list of calls."""
    t = relax.transform
    passes = [
        t.DecomposeOpsForInference(),
        t.LegalizeOps(),
        t.FoldConstant(),
        t.RewriteDataflowReshape(),
        t.AnnotateTIROpPattern(),
        t.FuseOps(),
        t.FuseTIR(),
        t.RewriteDataflowReshape(),
        t.DeadCodeElimination(),
    ]
    # FoldConstant runs what it folds, one core is enough for that.
    with tvm.transform.PassContext(opt_level=3):
        return tvm.ir.transform.Sequential(passes)(module)


def assemble(
    module: tvm.IRModule,
    layers: Sequence[Layer],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    prefix: str,
    target: Target,
) -> Stage:
    """The stage that a Relax module is.

    Args:
        module: as `import_onnx` gives it, layers as `layer_call` makes them.
        layers: the layers.
        inputs: what `main` takes.
        outputs: what `main` returns.
        prefix: of the kernels' C symbols.
        target: what the schedules are made for.

    Raises:
        UnsupportedError: the module holds a call that is neither a TIR function nor a layer.
    """
    module = legalize(module)
    if target.gpu is not None:
        module = fuse_rows(module)
    builder = _Builder(module, layers, prefix, target)
    main = module["main"]
    refs = [builder.new_buffer(_bytes(spec)) for spec in inputs]
    builder.values.update(zip(main.params, refs, strict=True))
    for block in main.body.blocks:
        for binding in block.bindings:
            builder.bind(binding)
    result = builder.value(main.body.body)
    results = result if isinstance(result, tuple) else (result,)
    stage = Stage(
        kernels=builder.kernels,
        calls=tuple(builder.calls),
        buffers=tuple(builder.buffers),
        constants=tuple(builder.constants),
        inputs=tuple(zip(inputs, refs, strict=True)),
        outputs=tuple(zip(outputs, results, strict=True)),  # type: ignore[arg-type]
    )
    return stage if target.gpu is None else stage.unrolled()


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _spec(name: str, ty: Any) -> TensorSpec:
    return TensorSpec(name, str(ty.dtype), tuple(int(d) for d in ty.shape))


class _Builder:
    """The stage while it grows."""

    def __init__(self, module: tvm.IRModule, layers: Sequence[Layer], prefix: str, target: Target) -> None:
        self.module, self.layers, self.prefix, self.target = module, layers, prefix, target
        self.values: dict[Any, Value] = {}
        self.buffers: list[int] = []
        self.constants: list[NDArray[np.generic]] = []
        self.kernels: dict[str, Kernel] = {}
        self.calls: list[Call] = []
        self._constant_index: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._by_hash: dict[int, list[str]] = {}
        self._plans: dict[str, Plan] = {}

    def new_buffer(self, size: int) -> BufferRef:
        self.buffers.append(size)
        return BufferRef(len(self.buffers) - 1)

    def constant(self, array: NDArray[np.generic]) -> ConstantRef:
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes < 4096 else _digest(array))
        if key not in self._constant_index:
            self._constant_index[key] = len(self.constants)
            self.constants.append(array)
        return ConstantRef(self._constant_index[key])

    def kernel_symbol(self, kernel: Kernel) -> str:
        """The C symbol of `kernel`; structurally equal kernels share one."""
        same = self._by_hash.setdefault(tvm_ffi.structural_hash(kernel.func), [])
        for symbol in same:
            other = self.kernels[symbol]
            alike = replace(other, name=kernel.name, func=kernel.func) == kernel
            if alike and tvm_ffi.structural_equal(other.func, kernel.func):
                return symbol
        name = re.sub(r"\W", "_", kernel.name)[:60]
        symbol = f"{self.prefix}_{len(self.kernels)}_{name}"
        self.kernels[symbol] = kernel
        same.append(symbol)
        return symbol

    def run(self, plan: Plan, inputs: Sequence[Ref], outputs: Sequence[Ref], nodes: tuple[str, ...]) -> None:
        """Appends the calls of `plan`, which belong to the layers `nodes`, or to none."""
        scratch = [self.new_buffer(size) for size in plan.scratch]
        weights = [step.constant_bytes for step in plan.steps]
        passes = passes_of([(step.passes, step.back) for step in plan.steps])

        def place(operand: Operand) -> Ref:
            if isinstance(operand, Constant):
                return self.constant(operand.array)
            if isinstance(operand, Moving):
                ref = place(operand.buffer)
                if isinstance(ref, BufferRef):
                    return replace(ref, first=operand.first, stride=operand.stride)
                array = self.constants[ref.index].ravel()  # a constant that is the layer's input: an initial state
                return self.constant(array[operand.first // array.itemsize :])
            of = {Input: inputs, Output: outputs, Scratch: scratch}
            return of[type(operand)][operand.index]

        def size(ref: Ref) -> int:
            return (abs(ref.stride) or self.buffers[ref.index]) if isinstance(ref, BufferRef) else 0

        for step, share, times in zip(plan.steps, weights, passes, strict=True):
            args = [place(operand) for operand in step.args]
            # Multiply-adds are where the weights are.
            flops = plan.flops / times * (share / sum(weights) if any(weights) else 1 / len(weights))
            # In a loop weights that fit the caches are read from there.
            read = 0 if times > 1 and share <= self.target.l2_bytes / 2 else share
            moved = read + sum(map(size, args))
            node, further = (nodes[0], nodes[1:]) if nodes else ("", ())
            info = StepInfo(node, step.kernel.name, plan.format if share else "", further)
            nanoseconds = flops / _FLOPS_A_NANOSECOND + moved / BYTES_A_NANOSECOND
            symbol = self.kernel_symbol(step.kernel)
            self.calls.append(Call(symbol, tuple(args), info, nanoseconds, passes=step.passes, back=step.back))

    def bind(self, binding: Any) -> None:
        self.values[binding.var] = self.value(binding.value)

    def value(self, expr: Any) -> Value:
        """Where the value of a Relax expression lies; calls are appended to the stage."""
        if isinstance(expr, tvm.ir.GenericConst):
            return self.constant(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            items = self.value(expr.tuple_value)
            assert isinstance(items, tuple)
            item: Value = items[expr.index]
            return item
        if isinstance(expr, relax.Call):
            return self.call(expr)
        bound: Value = self.values[expr]
        return bound

    def call(self, call: Any) -> Value:
        op = getattr(call.op, "name", None)
        if op == "relax.reshape":
            return self.value(call.args[0])  # dense row-major tensors: the same bytes
        if op not in ("relax.call_tir", "relax.call_dps_packed"):
            raise UnsupportedError(f"operator {op or call.op} has no code generator; lwc lowers tensor operators only")
        refs: list[Ref] = []
        for argument in call.args[1].fields:
            ref = self.value(argument)
            assert not isinstance(ref, tuple)
            refs.append(ref)
        (ty,) = call.ty_args
        fields = ty.fields if isinstance(ty, relax.TupleType) else [ty]
        results = [self.new_buffer(_bytes(_spec("", field))) for field in fields]
        if op == "relax.call_dps_packed":
            name = str(call.args[0].global_symbol)
            index = layer_index(name)
            if index is None:
                raise UnsupportedError(f"function {name} has no code generator")
            layer = self.layers[index]
            self.run(layer.plan, refs, results, layer.nodes)
        else:
            self.run(self.plan(call.args[0], len(refs)), refs, results, ())
        return tuple(results) if isinstance(ty, relax.TupleType) else results[0]

    def plan(self, function: Any, inputs: int) -> Plan:
        name = function.name_hint
        if name not in self._plans:
            func = self.module[function]
            assert isinstance(func, tirx.PrimFunc)
            if self.target.gpu is not None:
                self._plans[name] = split_device(name, func, inputs)
            else:
                self._plans[name] = split_function(name, schedule(func, self.target), inputs)
        return self._plans[name]


def _digest(array: NDArray[np.generic]) -> bytes:
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()
