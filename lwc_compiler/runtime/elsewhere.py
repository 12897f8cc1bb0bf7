"""Runs a network where its code can run: in an emulator, on a board by ssh, on a device by adb.

The runner (`runtime/c/runner.c`) is linked with the network into one static program, which needs nothing but the
operating system there. A `Place` takes files, starts the program and gives files back; all it asks of a board is a
POSIX shell. What it made there is removed when it is closed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lwc_compiler.codegen.link import find_compiler, link_program
from lwc_compiler.errors import ArtifactError, NotRunError, OptionError, TargetError, ToolchainError
from lwc_compiler.runtime.bare_metal import BoardSession
from lwc_compiler.runtime.network import Network

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lwc_compiler.runtime.linkable import Linkable
    from lwc_compiler.targets.target import Target

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_COPY_SECONDS = 600
_RUN_SECONDS = 600
_SPARE_SECONDS = 30  # the program ends itself in time; what started it gets so much longer
_WEIGHTS = "weights"
# Of <sysexits.h>, by which the runner says what was wrong.
_EX_UNAVAILABLE, _EX_SOFTWARE, _EX_OSERR, _EX_IOERR = 69, 70, 71, 74


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status; 128 + the number of the signal that ended it.
        out: what it printed.
        err: what it printed on stderr.
    """

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Times:
    """What the runner measured.

    Attributes:
        target: whose code ran.
        runs: seconds of every run.
        steps: seconds of every step, and then of the copies of inputs and outputs, of some more runs: shape (runs,
            steps + 1); no rows when they were not asked for.
    """

    target: str
    runs: list[float]
    steps: list[NDArray[np.float64]]


class Place(Protocol):
    """Where programs can be run: a folder, and a way to start what lies there."""

    name: str
    machine: str  # what `uname -m` says there; empty where that was not asked

    def put(self, name: str, contents: bytes) -> None:
        """Writes a file."""

    def run(self, name: str, arguments: Sequence[str], seconds: float) -> Ended:
        """Runs a file of the folder there; `NotRunError` when it takes longer than `seconds`."""

    def get(self, name: str) -> bytes:
        """Reads a file."""

    def close(self) -> None:
        """Removes the folder."""


class Qemu:
    """QEMU's emulation of a processor for programs of this machine's operating system."""

    machine = ""

    def __init__(self, target: Target) -> None:
        self._command = emulator_of(target)
        self.name = Path(self._command[0]).name
        self._folder = tempfile.TemporaryDirectory(prefix="lwc-")

    def put(self, name: str, contents: bytes) -> None:
        (Path(self._folder.name) / name).write_bytes(contents)

    def run(self, name: str, arguments: Sequence[str], seconds: float) -> Ended:
        (Path(self._folder.name) / name).chmod(0o700)
        done = _call([*self._command, f"./{name}", *arguments], self.name, seconds, cwd=self._folder.name)
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return Ended(status, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def get(self, name: str) -> bytes:
        return (Path(self._folder.name) / name).read_bytes()

    def close(self) -> None:
        self._folder.cleanup()


class _Shell(ABC):
    """A place with a POSIX shell; subclasses say how it gets a command."""

    name: str
    machine: str
    _parent = "/tmp"

    def _open(self) -> None:
        """Makes the folder: the first connection, whose failure says what is wrong with it."""
        # Everybody may write to the parent: a name that nobody foresees, and mkdir refuses one that is there.
        self._folder = f"{self._parent}/lwc-{secrets.token_hex(8)}"
        done = self._start(f"umask 077; mkdir {self._folder} && uname -m", b"", _CONNECT_SECONDS + _SPARE_SECONDS)
        if done.returncode != 0:
            raise NotRunError(f"{self.name}: cannot make a folder in {self._parent}: {_said(done.stderr)}")
        self.machine = done.stdout.decode(errors="replace").strip()

    @abstractmethod
    def _start(self, script: str, stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        """Has a POSIX shell there run a script."""

    def put(self, name: str, contents: bytes) -> None:
        path = f"{self._folder}/{name}"
        done = self._start(f"cat > {path}", contents, _COPY_SECONDS)
        if done.returncode != 0:
            size = len(contents)
            raise NotRunError(f"{self.name}: cannot write {size:,} bytes to {path}: {_said(done.stderr)}")

    def run(self, name: str, arguments: Sequence[str], seconds: float) -> Ended:
        # `exit` keeps the shell from becoming the program: then it says by which signal that ended.
        script = f"cd {self._folder} && chmod 700 {name} && ./{name} {shlex.join(arguments)}; exit $?"
        done = self._start(script, b"", seconds)
        return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def get(self, name: str) -> bytes:
        done = self._start(f"cat {self._folder}/{name}", b"", _COPY_SECONDS)
        if done.returncode != 0:
            raise NotRunError(f"{self.name}: cannot read {self._folder}/{name}: {_said(done.stderr)}")
        return done.stdout

    def close(self) -> None:
        try:
            self._start(f"rm -rf {self._folder}", b"", _CONNECT_SECONDS + _SPARE_SECONDS)
        except NotRunError as error:
            logger.warning("%s was left there: %s", self._folder, error)


class Ssh(_Shell):
    """A machine that OpenSSH's client logs in to by a key, without questions.

    Args:
        address: `ssh://[user@]host[:port]`, as the client takes it.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"ssh://(?!-)[^/\s]+/?", address):
            raise OptionError(f"'{address}' is no place to run: an address is ssh://USER@HOST or ssh://USER@HOST:PORT")
        if not shutil.which("ssh"):
            raise ToolchainError(
                f"{address} needs OpenSSH's client: there is no ssh on the PATH; on Debian and Ubuntu it is in the "
                "package openssh-client"
            )
        self.name = address.rstrip("/")
        self._open()

    def _start(self, script: str, stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        # The login shell may be any; the script is for a POSIX shell.
        command = ["ssh", *options, self.name, f"sh -c {shlex.quote(script)}"]
        done = _call(command, self.name, seconds, stdin)
        if done.returncode == 255:  # the client's own
            said = _said(done.stderr)
            if "Host key verification failed" in said:
                advice = f"connect once by hand, to see and accept its key: ssh {self.name}"
            elif "Permission denied" in said:
                advice = f"lwc asks for no password: let it in by a key (ssh-copy-id {self.name}), or name another user"
            else:
                advice = f"check that `ssh {self.name} true` works"
            raise NotRunError(f"{self.name} cannot be reached: {said}; {advice}")
        return done


class Adb(_Shell):
    """The Android device that adb finds, or that the environment's ANDROID_SERIAL names."""

    name = "adb"
    _parent = "/data/local/tmp"  # the one place where its shell may both write and execute

    def __init__(self) -> None:
        if not shutil.which("adb"):
            raise ToolchainError(
                "adb is not on the PATH; on Debian and Ubuntu it is in the package adb, elsewhere in Android's "
                "platform tools"
            )
        state = _call(["adb", "get-state"], self.name, _CONNECT_SECONDS + _SPARE_SECONDS)
        if state.returncode != 0:
            raise NotRunError(f"adb has no device: {_said(state.stderr)}; `adb devices` lists what it sees")
        self._open()

    def _start(self, script: str, stdin: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        return _call(["adb", "shell", script], self.name, seconds, stdin)

    # adb's shell may change what passes through it; files have ways of their own.

    def put(self, name: str, contents: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            path = Path(folder) / name
            path.write_bytes(contents)
            self._copy("push", str(path), f"{self._folder}/{name}")

    def get(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
            path = Path(folder) / name
            self._copy("pull", f"{self._folder}/{name}", str(path))
            return path.read_bytes()

    def _copy(self, verb: str, source: str, destination: str) -> None:
        done = _call(["adb", verb, source, destination], self.name, _COPY_SECONDS)
        if done.returncode != 0:
            raise NotRunError(f"adb cannot {verb} {source}: {_said(done.stderr or done.stdout)}")


def emulator_of(target: Target) -> tuple[str, ...]:
    """How QEMU is started for a target, without the program to run.

    Raises:
        NotRunError: QEMU runs no program of the target's platform.
        ToolchainError: it is not installed.
    """
    if not target.emulator:
        raise NotRunError(
            f"qemu runs no code for {target.name} ({target.triple}): what it can run is made for Linux on Arm or "
            "RISC-V, see `lwc targets`"
        )
    program, *arguments = target.emulator
    for name in (program, f"{program}-static"):
        if shutil.which(name):
            return (name, *arguments)
    raise ToolchainError(
        f"running code for {target.name} here needs {program}, which is not on the PATH; on Debian and Ubuntu it is in "
        "the package qemu-user-static"
    )


def open_elsewhere(network: Linkable, via: str, threads: int) -> RemoteSession | BoardSession:
    """Opens a network to be run by `via`.

    Args:
        network: what is run.
        via: `qemu`, `ssh://[user@]host[:port]` or `adb`.
        threads: of a run, at least 1.

    Raises:
        OptionError: `via` is none of these, or `threads` is below 1.
        TargetError: the place cannot be reached, or does not run the code.
        ToolchainError: a program that this needs here is missing: QEMU, ssh, adb, a C compiler.
    """
    target = network.target
    if target.os == "none":
        if via != "qemu":
            raise NotRunError(
                f"the code is for {target.name}, which has no operating system: {via} runs programs for Linux; "
                "--via qemu emulates a board"
            )
        return BoardSession(network, threads)
    place = _place(via, target)
    try:
        source = (resources.files("lwc_compiler.runtime") / "c" / "runner.c").read_bytes()
        files = {"runner.c": source, f"{network.symbol}.h": network.header, "network.a": network.archive}
        flags = [f"-DMODEL={network.symbol}"]
        if network.weights is not None:
            flags.append(f"-DWEIGHTS={len(network.weights)}")
            place.put(_WEIGHTS, network.weights)
        place.put("runner", link_program(find_compiler(target, network.cc, static=True), files, flags))
        return RemoteSession(place, network, threads)
    except BaseException:
        place.close()
        raise


def _place(via: str, target: Target) -> Place:
    if via == "qemu":
        return Qemu(target)
    if via == "adb":
        return Adb()
    return Ssh(via)


class RemoteSession(Network):
    """A network that runs somewhere else, one process a run.

    Close it, or use it as a context manager: what was copied is removed then. Calls from several threads take turns.

    Attributes:
        where: the name of the emulator, or the address.
        limit_seconds: a run that takes longer is ended.
    """

    def __init__(self, place: Place, network: Linkable, threads: int) -> None:
        super().__init__(network.inputs, network.outputs, threads)
        self.where = place.name
        self.limit_seconds = _RUN_SECONDS
        self._place: Place | None = place
        self._target = network.target
        self._first = [] if network.weights is None else [_WEIGHTS]
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
        with self._lock:
            place, _ = self._started(inputs, ())
            files = [place.get(f"output{number}") for number in range(len(self.outputs))]
        outputs = {}
        for spec, contents in zip(self.outputs, files, strict=True):
            dtype = np.dtype(spec.dtype)
            expected = math.prod(spec.shape) * dtype.itemsize
            if len(contents) != expected:
                raise NotRunError(
                    f"{self.where}: output '{spec.name}' came back with {len(contents)} of {expected} bytes"
                )
            outputs[spec.name] = np.frombuffer(contents, dtype).reshape(spec.shape).copy()
        return outputs

    def time(self, inputs: Mapping[str, ArrayLike], seconds: float, *, steps: bool = False) -> Times:
        """Times runs there, after a warm-up: at least 5, for `seconds`, and as long again for the steps.

        Raises:
            DataError, TargetError, ArtifactError: see `run`.
        """
        with self._lock:
            _, ended = self._started(inputs, ("-s", f"{seconds:g}", *(("-p",) if steps else ())), 2 * seconds)
        try:
            values = json.loads(ended.out)
            return Times(values["target"], values["runs"], [np.array(row) for row in values["steps"]])
        except (ValueError, KeyError, TypeError):
            raise NotRunError(f"{self.where}: the times came back damaged: {ended.out[:200]!r}") from None

    def close(self) -> None:
        """Removes what was copied."""
        place, self._place = self._place, None
        if place is not None:
            place.close()

    def _started(
        self, inputs: Mapping[str, ArrayLike], options: Sequence[str], more_seconds: float = 0
    ) -> tuple[Place, Ended]:
        """Copies the inputs, and runs the program to its end."""
        arrays = self.arrays(inputs)
        place = self._place
        if place is None:
            raise ArtifactError("the session is closed: load the artifact again")
        for number, array in enumerate(arrays):
            place.put(f"input{number}", array.tobytes())
        files = [f"input{i}" for i in range(len(arrays))] + [f"output{i}" for i in range(len(self.outputs))]
        files = [*self._first, *files]
        limit = math.ceil(self.limit_seconds + more_seconds)
        arguments = ["-t", str(self.threads), "-l", str(limit), *options, *files]
        ended = place.run("runner", arguments, limit + _SPARE_SECONDS)
        if ended.status:
            raise self._failure(place, ended, limit)
        return place, ended

    def _failure(self, place: Place, ended: Ended, limit: int) -> TargetError | ArtifactError:
        target, said = self._target, _said(ended.err)
        if ended.status == _EX_UNAVAILABLE:
            missing = ", ".join(sorted(target.features))
            return NotRunError(
                f"{self.where}: its processor cannot run code for {target.name}, which needs {missing}: compile with "
                "the target of that processor, see `lwc targets`"
            )
        if ended.status == _EX_SOFTWARE:
            return ArtifactError(f"{self.where}: the library failed: {said.removeprefix('runner: ')}")
        if ended.status in (_EX_OSERR, _EX_IOERR):
            return NotRunError(f"{self.where}: {said.removeprefix('runner: ')}, with {self.threads} threads")
        if ended.status == 128 + signal.SIGALRM:
            return NotRunError(f"{self.where}: the network was still at work after {limit} s, and was ended")
        if 128 < ended.status < 128 + signal.NSIG:
            return self._ended_by(ended.status - 128, said)
        there = f"the machine there is {place.machine}, the code" if place.machine else "the code"
        return NotRunError(
            f"{self.where}: the program could not be started (exit status {ended.status}: {said}); {there} is for "
            f"{target.name} ({target.triple}): compile with the target of that machine, see `lwc targets`"
        )

    def _ended_by(self, number: int, said: str) -> TargetError:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if name == "SIGKILL":
            return NotRunError(f"{self.where}: the program was killed, as a system out of memory does: {said}")
        if name == "SIGILL":
            return TargetError(
                f"{self.where}: the processor has no such instruction (SIGILL): the code is for {self._target.name}; "
                "compile with the target of that processor, see `lwc targets`"
            )
        return TargetError(
            f"{self.where}: the program crashed ({name}): {said}; this is a defect in lwc or the emulator: please "
            "report it with the model"
        )


def _call(
    command: Sequence[str], where: str, seconds: float, stdin: bytes = b"", cwd: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    # The language of the messages that are looked at.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, timeout=seconds, cwd=cwd, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotRunError(f"{where} did not answer within {seconds:g} s") from None
    except OSError as error:
        raise ToolchainError(f"cannot start {command[0]}: {error.strerror or error}") from error


def _said(output: bytes | str) -> str:
    """The last lines of what a program said, in one line."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"
