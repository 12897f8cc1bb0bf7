"""The engines: what each needs, what it loads, and what it is told to leave unused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lwc_compiler
from benchmarks.peers import environments
from benchmarks.peers.environments import Environment, UnavailableError, install, version
from benchmarks.peers.files import Network, compiled, converted

NATIVE, AVX2 = "native", "avx2"


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: as in the tables.
        worker: its script in `workers`.
        environment: its packages; None: this environment.
        load: gives what its worker loads; takes the network, whether its zeros count, and the options.
        uses_zeros: whether zeros can make it faster; the others only run dense networks.
        batches: whether it takes batches above 1.
        variables: environment variables of its worker.
        avx2: variables that keep it to AVX2; None: it has no such switch.
    """

    name: str
    worker: str
    environment: Environment | None
    load: Callable[[Network, bool, Options], Path]
    uses_zeros: bool = False
    batches: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)
    avx2: Mapping[str, str] | None = None

    def python(self) -> Path:
        """The Python its worker runs on; made first where it has to be."""
        return Path(sys.executable) if self.environment is None else install(self.environment)

    def available(self) -> str:
        """Why it cannot run here; empty where it can."""
        try:
            self.python()
        except UnavailableError as error:
            return str(error)
        return ""

    def version(self) -> str:
        return lwc_compiler.__version__ if self.environment is None else version(self.environment)


@dataclass(frozen=True)
class Options:
    """What all engines of a run share.

    Attributes:
        threads: threads of every engine.
        isa: `native`: whatever the machine has; `avx2`: what has a switch for it keeps to AVX2.
        target: what lwc compiles for.
    """

    threads: int
    isa: str
    target: str


def _onnx(network: Network, _zeros: bool, _options: Options) -> Path:
    return network.onnx


def _mnn(network: Network, zeros: bool, _options: Options) -> Path:
    name = f"{'sparse' if zeros else 'dense'}-{version(environments.MNN)}.mnn"
    flags = ["--detectSparseSpeedUp"] if zeros else []
    return converted("convert_mnn.py", install(environments.MNN), network, name, flags)


def _ncnn(network: Network, _zeros: bool, _options: Options) -> Path:
    if network.batch > 1:
        raise UnavailableError("it has no batches")
    shape = ",".join(map(str, network.shape))
    name = f"ncnn-{version(environments.NCNN)}"
    return converted("convert_ncnn.py", install(environments.NCNN), network, name, [shape])


def _lwc(network: Network, _zeros: bool, options: Options) -> Path:
    return compiled(network, options.target, options.threads)


LWC, REFERENCE = "lwc", "onnxruntime"

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(LWC, "run_lwc.py", None, _lwc, uses_zeros=True, avx2={}),
        Engine(REFERENCE, "run_onnxruntime.py", environments.ONNXRUNTIME, _onnx),
        Engine(
            "deepsparse",
            "run_deepsparse.py",
            environments.DEEPSPARSE,
            _onnx,
            uses_zeros=True,
            variables={"NM_DISABLE_ANALYTICS": "1", "NM_BIND_THREADS_TO_CORES": "0"},
        ),
        Engine("openvino", "run_openvino.py", environments.OPENVINO, _onnx, avx2={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        Engine("mnn", "run_mnn.py", environments.MNN, _mnn, uses_zeros=True),
        Engine("ncnn", "run_ncnn.py", environments.NCNN, _ncnn, batches=False),
    )
}
