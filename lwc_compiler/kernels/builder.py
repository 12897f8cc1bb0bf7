"""Writes a kernel's TIR, statement by statement, with explicit vectors.

Registers are arrays of one vector that are only ever accessed whole, so LLVM keeps them in machine registers; what the
builder emits is what the processor runs.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.ir import PointerType, PrimType, StringImm
from tvm.tirx.stmt import (
    AllocBuffer,
    AttrStmt,
    Bind,
    BufferStore,
    DeclBuffer,
    Evaluate,
    For,
    ForKind,
    IfThenElse,
    SeqStmt,
    Stmt,
)

from lwc_compiler.kernels.kernel import Kernel
from lwc_compiler.kernels.weight_types import WeightType

if TYPE_CHECKING:
    from collections.abc import Iterator

Expr = Any

# Replaces an integer by itself, by way of assembly that is empty.
_OPAQUE = """define void @lwc_opaque(ptr %place) alwaysinline {
%before = load i64, ptr %place
%after = call i64 asm "", "=r,0"(i64 %before)
store i64 %after, ptr %place
ret void
}
"""

# Buffers are declared without their real length: kernels that differ only in the amount of data are the same function.
_ANY_LENGTH = 1 << 30


class Register:
    """One vector (a scalar for one lane)."""

    def __init__(self, builder: KernelBuilder, lanes: int, dtype: str) -> None:
        self._builder = builder
        self._lanes = lanes
        self._buffer = tirx.decl_buffer((lanes,), dtype, name="r", scope=builder.register_scope)
        builder.emit(AllocBuffer(self._buffer))

    def get(self) -> Expr:
        """The value it holds."""
        return self._builder.load(self._buffer, 0, self._lanes)

    def set(self, value: Expr) -> None:
        """Replaces the value."""
        self._builder.store(self._buffer, 0, value, self._lanes)

    def address(self, lane: int = 0) -> Expr:
        """Where one of its lanes lies, for functions that take it so."""
        return tirx.address_of(self._buffer.vload([tirx.const(lane, "int32")]))

    def part(self, start: int, lanes: int) -> Expr:
        """`lanes` of its lanes from `start` on."""
        return self._builder.load(self._buffer, start, lanes)

    def set_part(self, lane: int, value: Expr) -> None:
        """Replaces the value of one lane."""
        self._builder.store(self._buffer, lane, value)

    @property
    def pointer(self) -> Expr:
        """Its address, for a function that is called by name."""
        return self._buffer.data


class KernelBuilder:
    """Builds one kernel: declare its pointers, then emit the work of the tiles `first` to `last` - 1.

    Attributes:
        register_scope: TVM's name of the memory that registers are.
        has_erf: the hardware's library has the error function.
    """

    register_scope = "global"
    has_erf = False

    def __init__(self) -> None:
        self._pointers: list[Expr] = []
        self._data: dict[Expr, Expr] = {}
        self._declared: list[Stmt] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._code: dict[str, str] = {}
        self.first = tirx.Var("t0", "int32")
        self.last = tirx.Var("t1", "int32")

    def pointer(self, name: str, dtype: str = "float32") -> Expr:
        """The next parameter: a buffer of unknown length."""
        data = tirx.Var(name, PointerType(PrimType(dtype)))
        buffer = tirx.decl_buffer((_ANY_LENGTH,), dtype, name=f"{name}_data")
        self._pointers.append(data)
        self._data[buffer] = data
        self._declared.append(DeclBuffer(buffer, data=data))
        return buffer

    def from_element(self, buffer: Expr, index: Expr) -> Expr:
        """What a pointer's buffer holds from an element on; its address is computed once."""
        elements = tirx.decl_buffer((_ANY_LENGTH,), buffer.dtype, name="elements")
        size = np.dtype(str(buffer.dtype)).itemsize
        self.emit(DeclBuffer(elements, data=tirx.handle_add_byte_offset(self._data[buffer], _int(index * size))))
        return elements

    def emit(self, statement: Stmt) -> None:
        """Appends a statement."""
        self._blocks[-1].append(statement)

    def let(self, name: str, value: Expr) -> Expr:
        """Computes a value once; Python integers stay constants."""
        if isinstance(value, (int, tirx.IntImm)):
            return value
        var = tirx.Var(name, str(value.ty.dtype))
        self.emit(Bind(var, value))
        return var

    def address(self, value: Expr) -> Expr:
        """Computes an index once, in 64 bits, so that constants added to it become part of the instruction.

        It is kept in memory as far as TVM sees, which would otherwise put the whole expression in every use, and then
        share sums with constants between uses that have registers of their own.
        """
        cell = tirx.decl_buffer((1,), "int64", name="address")
        self.emit(AllocBuffer(cell))
        self.emit(BufferStore(cell, _int(value).astype("int64"), [tirx.const(0, "int32")]))
        return cell.vload([tirx.const(0, "int32")])

    def opaque_address(self, value: Expr) -> Expr:
        """Computes an index once, for uses at constant distances, and keeps LLVM from taking it for another's sum."""
        place = self.address(value)
        self.call(_OPAQUE, "lwc_opaque", tirx.address_of(place))
        return place

    def register(self, lanes: int, dtype: str = "float32") -> Register:
        """A new register; its value is undefined until it is set."""
        return Register(self, lanes, dtype)

    def load(self, buffer: Expr, index: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """`lanes` elements of a buffer from `index` on, `stride` apart; reads the elements between them too."""
        if stride == 1 or lanes == 1:
            return buffer.vload([_ramp(index, lanes)])
        parts = [buffer.vload([_ramp(index + i * lanes, lanes)]) for i in range(stride)]
        return tirx.Shuffle(parts, [tirx.const(i * stride, "int32") for i in range(lanes)])

    def weights(self, codes: Expr, kind: WeightType, lanes: int = 1) -> Expr:
        """The float32 weights of loaded codes; those of `int8` without their scale."""
        shape = f"x{lanes}" if lanes > 1 else ""
        if kind.name == "float16" and kind.converts_half:
            codes = tirx.reinterpret(f"float16{shape}", codes)
        elif kind.name == "float16":
            # Exponent and mantissa move to the places that they have in float32, whose exponents have another bias.
            bits = codes.astype(f"int32{shape}").astype(f"uint32{shape}") << splat(tirx.const(13, "uint32"), lanes)
            bits = bits & splat(tirx.const(0x8FFFE000, "uint32"), lanes)
            return tirx.reinterpret(f"float32{shape}", bits) * splat(2.0**112, lanes)
        return codes if kind.name == "float32" else codes.astype(f"float32{shape}")

    def prefetch(self, buffer: Expr, index: Expr) -> None:
        """Asks for the cache line of an element, which need not exist, to be brought into the level-1 cache."""
        read, near, data = (tirx.const(value, "int32") for value in (0, 3, 1))
        address = self.address_of(buffer, index)
        self.emit(Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, read, near, data)))

    def address_of(self, buffer: Expr, index: Expr) -> Expr:
        """Where an element of a buffer lies."""
        return tirx.address_of(buffer.vload([_int(index)]))

    def call(self, code: str, name: str, *arguments: Expr) -> None:
        """Calls a function without a result that is written in LLVM's language; it becomes part of the kernel."""
        self._code[name] = code
        self.emit(Evaluate(tirx.call_extern("void", name, *arguments)))

    def shuffle(self, first: Register, second: Register, lanes: list[int]) -> Register:
        """A register of the given lanes of two others; the lanes of the second count on from those of the first."""
        result = self.register(len(lanes))
        result.set(tirx.Shuffle([first.get(), second.get()], [tirx.const(lane, "int32") for lane in lanes]))
        return result

    def store(self, buffer: Expr, index: Expr, value: Expr, lanes: int = 1) -> None:
        """Stores consecutive elements."""
        self.emit(BufferStore(buffer, value, [_ramp(index, lanes)]))

    @contextmanager
    def _block(self) -> Iterator[list[Stmt]]:
        block: list[Stmt] = []
        self._blocks.append(block)
        yield block
        self._blocks.pop()

    @contextmanager
    def loop(self, name: str, start: Expr, stop: Expr, *, rolled: bool = False) -> Iterator[Expr]:
        """Runs the block for `start` <= variable < `stop`; a loop of one pass is no loop.

        With `rolled` the compiler of CUDA's text leaves the loop one.
        """
        if isinstance(start, int) and isinstance(stop, int) and stop - start == 1:
            yield start
            return
        var = tirx.Var(name, "int32")
        with self._block() as block:
            yield var
        annotations = {"disable_unroll": 1} if rolled else {}
        loop = For(var, _int(start), _int(stop - start), ForKind.SERIAL, _sequence(block), annotations=annotations)
        self.emit(loop)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Runs the block if the condition holds."""
        if isinstance(condition, bool):
            with self._block() as block:
                yield
            if condition:
                self._blocks[-1].extend(block)
            return
        with self._block() as block:
            yield
        self.emit(IfThenElse(condition, _sequence(block), None))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The else branch of the `when` just before."""
        before = self._blocks[-1].pop()
        with self._block() as block:
            yield
        self.emit(IfThenElse(before.condition, before.then_case, _sequence(block)))

    def build(self, name: str, tiles: int, thread_bytes: int = 0, bands: int = 1, over: int | None = None) -> Kernel:
        """The finished kernel; with `thread_bytes` > 0 the last pointer is the thread's scratch memory."""
        body = SeqStmt([*self._declared, _sequence(self._blocks[0])])
        for code in self._code.values():
            body = AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(code), body)
        func = tirx.PrimFunc([*self._pointers, self.first, self.last], body)
        return Kernel(name, func.with_attr("tirx.noalias", over is None), tiles, thread_bytes, bands, over)


def _sequence(block: list[Stmt]) -> Stmt:
    return block[0] if len(block) == 1 else SeqStmt(block)


def _int(value: Expr) -> Expr:
    return tirx.const(value, "int32") if isinstance(value, int) else value


def _ramp(index: Expr, lanes: int) -> Expr:
    index = _int(index)
    return tirx.Ramp(index, tirx.const(1, str(index.ty.dtype)), lanes) if lanes > 1 else index


def splat(value: Expr, lanes: int) -> Expr:
    """A vector with `value` in every lane."""
    scalar = tirx.const(float(value), "float32") if isinstance(value, (int, float)) else value
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def lane(vector: Expr, index: int, lanes: int) -> Expr:
    """A vector with one lane of another in every lane."""
    return tirx.Shuffle([vector], [tirx.const(index, "int32")] * lanes)


def clamp(value: Expr, low: int, high: int) -> Expr:
    """`value` limited to [low, high]."""
    if isinstance(value, int):
        return min(max(value, low), high)
    return tirx.min(tirx.max(value, low), high)


def smaller(a: Expr, b: Expr) -> Expr:
    """The smaller of two integers."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(_int(a), _int(b))


def divide(value: Expr, by: int) -> Expr:
    """Quotient of a non-negative integer."""
    if by == 1:
        return value
    return value // by if isinstance(value, int) else tirx.truncdiv(value, by)


def modulo(value: Expr, by: int) -> Expr:
    """Remainder of a non-negative integer."""
    if by == 1:
        return 0
    return value % by if isinstance(value, int) else tirx.truncmod(value, by)


def unravel(builder: KernelBuilder, index: Expr, shape: tuple[int, ...]) -> list[Expr]:
    """The coordinates of a flat index into `shape`, the last one fastest."""
    coordinates = []
    for extent in reversed(shape[1:]):
        coordinates.append(builder.let("i", modulo(index, extent)))
        index = builder.let("i", divide(index, extent))
    return [0 if shape[0] == 1 else index, *reversed(coordinates)]


def pieces(length: int, lanes: int) -> list[tuple[int, int]]:
    """Vectors (start, lanes) that cover `length` elements exactly; the last may overlap the one before it."""
    if length == 0:
        return []
    while lanes > length:
        lanes //= 2
    starts = [*range(0, length - lanes + 1, lanes)]
    if length % lanes:
        starts.append(length - lanes)
    return [(start, lanes) for start in starts]
