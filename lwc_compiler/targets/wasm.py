"""WebAssembly with SIMD: a static library to link into a module, for browsers and for runtimes such as wasmtime."""

from __future__ import annotations

from lwc_compiler.targets.target import Target

TARGETS = (
    Target(
        name="wasm32",
        family="wasm",
        triple="wasm32-unknown-wasi",
        cpu="generic",
        features=frozenset(),
        vector_bits=128,
        vector_registers=16,
        l1_bytes=32 << 10,
        l2_bytes=512 << 10,
        description="WebAssembly with SIMD: browsers, Node.js, wasmtime",
        os="none",
        zig="wasm32-wasi",
        zig_cpu="generic+simd128",
        llvm_options=(("mattr", ("+simd128",)), ("vector-width", 128)),
    ),
)


def host_features() -> frozenset[str]:
    """None: Python does not run there."""
    return frozenset()


def host_cpu() -> str:
    """Empty: Python does not run there."""
    return ""
