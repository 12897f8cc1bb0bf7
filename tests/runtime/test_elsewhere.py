"""Networks run elsewhere: the protocol, every transport, and what is said when something is wrong."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import lwc_compiler
from lwc_compiler.codegen.emit import Emitted
from lwc_compiler.codegen.header import emit_header
from lwc_compiler.codegen.link import compile_objects, find_compiler, make_archive
from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.errors import ArtifactError, DataError, NotRunError, OptionError, TargetError, ToolchainError
from lwc_compiler.runtime import elsewhere, linkable
from lwc_compiler.runtime.bench import bench
from lwc_compiler.runtime.elsewhere import Qemu, RemoteSession, emulator_of, open_elsewhere
from lwc_compiler.runtime.linkable import Linkable
from lwc_compiler.runtime.load import load
from lwc_compiler.targets import find_target

INPUTS = (TensorSpec("values", "float32", (2, 3)), TensorSpec("ids", "int64", (2,)))
OUTPUTS = (TensorSpec("doubled", "float32", (2, 3)), TensorSpec("same", "int64", (2,)))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
IDS = np.array([3, 4])

# A network whose first value chooses what goes wrong.
SOURCE = r"""
#include "odd.h"
#include <signal.h>
#include <string.h>
#include <unistd.h>
static const int64_t two_by_three[] = {2, 3}, two[] = {2};
static const odd_tensor in[] = {{"values", "float32", 2, two_by_three}, {"ids", "int64", 1, two}};
static const odd_tensor out[] = {{"doubled", "float32", 2, two_by_three}, {"same", "int64", 1, two}};
struct odd_pool { int threads; };
static odd_pool the_pool;
int odd_input_count(void) { return 2; }
int odd_output_count(void) { return 2; }
const odd_tensor *odd_inputs(void) { return in; }
const odd_tensor *odd_outputs(void) { return out; }
size_t odd_workspace_bytes(int threads) { return threads == 99 ? (size_t)1 << 50 : 64; }
odd_pool *odd_pool_create(int threads) { the_pool.threads = threads; return threads == 98 ? NULL : &the_pool; }
const char *odd_target(void) { return "x86-64-v3"; }
const char *odd_error_string(int code) { return code == 2 ? "the number of the beast" : "?"; }
int odd_cpu_supported(void) { return SUPPORTED; }
int odd_step_count(void) { return 2; }
int odd_run(const void *const *inputs, void *const *outputs, void *workspace, size_t bytes, odd_pool *pool) {
    const float *values = inputs[0];
    float *doubled = outputs[0];
    (void)workspace, (void)bytes;
    if (values[0] == 666) return 2;
    if (values[0] == 11) raise(SIGSEGV);
    if (values[0] == 4) raise(SIGILL);
    if (values[0] == 9) raise(SIGKILL);
    if (values[0] == 1000) sleep(30);
    for (int i = 0; i < 6; i++) doubled[i] = 2 * values[i];
    if (pool) doubled[0] = (float)pool->threads;
    memcpy(outputs[1], inputs[1], 16);
    return 0;
}
int odd_profile(
    const void *const *inputs, void *const *outputs, void *workspace, size_t bytes, odd_pool *pool, double *seconds) {
    seconds[0] += 3e-3;
    seconds[1] += 1e-3;
    return odd_run(inputs, outputs, workspace, bytes, pool);
}
"""


@dataclass
class Odd:
    """What is asked of a `Lowered`."""

    archive: bytes
    header: str
    symbol: str = "odd"
    inputs: tuple[TensorSpec, ...] = INPUTS
    outputs: tuple[TensorSpec, ...] = OUTPUTS
    target: str = "x86-64-v3"
    weights: bytes | None = None


def make_odd(supported=1):
    header = emit_header("odd", "odd", INPUTS, OUTPUTS, Emitted("", b"", "", 64, 64), threads=True)
    source = f"#define SUPPORTED {supported}\n{SOURCE}"
    files = {"odd.h": header.encode(), "odd.c": source.encode()}
    return Odd(make_archive(find_compiler(), compile_objects(find_compiler(), files)), header)


@pytest.fixture(scope="module")
def odd():
    return make_odd()


@pytest.fixture
def here(monkeypatch):
    """An emulator that is none: `env` runs a program as it is."""
    target = replace(find_target("x86-64-v3"), emulator=("env",))
    monkeypatch.setattr(linkable, "find_target", lambda name: target)


def test_run_computes_every_output(odd, here):
    with open_elsewhere(Linkable.of_lowered(odd), "qemu", 1) as session:
        assert isinstance(session, RemoteSession)
        assert (session.inputs, session.outputs, session.threads, session.where) == (INPUTS, OUTPUTS, 1, "env")
        for factor in (1, 2):
            outputs = session.run({"ids": IDS, "values": factor * VALUES})
            np.testing.assert_array_equal(outputs["doubled"], 2 * factor * VALUES)
            np.testing.assert_array_equal(outputs["same"], IDS)
            assert [array.dtype for array in outputs.values()] == [np.float32, np.int64]
    with pytest.raises(ArtifactError, match="session is closed"):
        session.run({"ids": IDS, "values": VALUES})


def test_threads_share_a_run(odd, here):
    with open_elsewhere(Linkable.of_lowered(odd), "qemu", 7) as session:
        assert session.run({"values": VALUES, "ids": IDS})["doubled"][0, 0] == 7
    for threads, words in ((98, "threads cannot be started"), (99, "out of memory, with 99 threads")):
        with (
            open_elsewhere(Linkable.of_lowered(odd), "qemu", threads) as session,
            pytest.raises(NotRunError, match=words),
        ):
            session.run({"values": VALUES, "ids": IDS})
    with pytest.raises(OptionError, match="threads is 0: a whole number, at least 1"):
        open_elsewhere(Linkable.of_lowered(odd), "qemu", 0)


def test_inputs_that_do_not_fit_are_refused(odd, here):
    with (
        open_elsewhere(Linkable.of_lowered(odd), "qemu", 1) as session,
        pytest.raises(DataError, match="'ids' is missing"),
    ):
        session.run({"values": VALUES})


def test_time_gives_runs_and_steps(odd, here):
    with open_elsewhere(Linkable.of_lowered(odd), "qemu", 1) as session:
        times = session.time({"values": VALUES, "ids": IDS}, 0.01, steps=True)
        assert times.target == "x86-64-v3"
        assert len(times.runs) > 5
        assert all(0 <= seconds < 1 for seconds in times.runs)
        assert len(times.steps) >= 5
        assert {tuple(row) for row in times.steps} == {(3e-3, 1e-3, 0.0)}
        assert session.time({"values": VALUES, "ids": IDS}, 0).steps == []


@pytest.mark.parametrize(
    ("first", "error", "words"),
    [
        (666, ArtifactError, "env: the library failed: the number of the beast"),
        (11, TargetError, r"env: the program crashed \(SIGSEGV\).*report it"),
        (4, TargetError, r"no such instruction \(SIGILL\): the code is for x86-64-v3"),
        (9, NotRunError, "the program was killed, as a system out of memory does"),
        (1000, NotRunError, "env: the network was still at work after 1 s, and was ended"),
    ],
)
def test_what_went_wrong_is_said(odd, here, first, error, words):
    with open_elsewhere(Linkable.of_lowered(odd), "qemu", 1) as session:
        session.limit_seconds = 1
        with pytest.raises(error, match=words) as caught:
            session.run({"values": np.full((2, 3), first, np.float32), "ids": IDS})
        assert type(caught.value) is error
        np.testing.assert_array_equal(session.run({"values": VALUES, "ids": IDS})["doubled"], 2 * VALUES)


def test_processor_without_the_instructions_is_said(here):
    with (
        open_elsewhere(Linkable.of_lowered(make_odd(supported=0)), "qemu", 1) as session,
        pytest.raises(NotRunError, match=r"cannot run code for x86-64-v3, which needs avx, avx2.*`lwc targets`"),
    ):
        session.run({"values": VALUES, "ids": IDS})


def test_an_emulator_is_found_by_either_name(monkeypatch):
    for there in ("qemu-aarch64", "qemu-aarch64-static"):
        monkeypatch.setattr(shutil, "which", lambda name, there=there: name == there)
        assert emulator_of(find_target("rpi4")) == (there, "-cpu", "cortex-a72")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match=r"needs qemu-aarch64, .*package qemu-user-static"):
        emulator_of(find_target("rpi4"))


@pytest.mark.skipif(
    not shutil.which("qemu-aarch64") and not shutil.which("qemu-aarch64-static"),
    reason="needs qemu-aarch64 (Debian: qemu-user-static)",
)
@pytest.mark.parametrize("weights", ["embed", "file"])
def test_code_for_another_machine_is_compiled_checked_run_and_timed(mlp, tmp_path, lwc, weights):
    options = ("--sparsity", "0.5", "--target", "rpi4", "--weights", weights)
    done = lwc("compile", mlp, "-o", tmp_path / "mlp.lwc", *options)
    assert "from ONNX Runtime (0.0001 allowed), run by qemu-aarch64" in done.out
    assert f"next: lwc bench {tmp_path}/mlp.lwc --via ssh://USER@HOST" in done.out
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out")
    assert "run it there, or by --via qemu" in lwc("run", tmp_path / "mlp.lwc", *arguments).err
    assert lwc("run", tmp_path / "mlp.lwc", *arguments, "--via", "qemu").code == 0
    expected = onnxruntime.InferenceSession(tmp_path / "mlp.lwc" / "mlp.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), expected, atol=1e-5)
    done = lwc("bench", tmp_path / "mlp.lwc", "--via", "qemu", "--seconds", "0", "--threads", "2")
    assert "2 threads by qemu-aarch64" in done.out
    assert "an emulator's times say little of a processor's" in done.out


@pytest.mark.parametrize("name", ["x86-64-v4", "apple-m1"])
def test_other_platforms_have_no_emulator(name):
    with pytest.raises(NotRunError, match=f"qemu runs no code for {name}.*Linux on Arm or RISC-V"):
        Qemu(find_target(name))


def test_code_without_an_operating_system_is_no_program(odd):
    network = Linkable.of_lowered(replace(odd, target="cortex-m7"))
    with pytest.raises(NotRunError, match=r"cortex-m7, which has no operating system.*--via qemu emulates a board"):
        open_elsewhere(network, "ssh://board", 1)
    with pytest.raises(OptionError, match="threads is 2: cortex-m7 has one"):
        open_elsewhere(network, "qemu", 2)


@pytest.mark.skipif(not shutil.which("qemu-system-arm"), reason="qemu-system-arm is not installed")
def test_code_for_a_microcontroller_is_checked_and_run_on_an_emulated_board(mlp, tmp_path, lwc):
    done = lwc("compile", mlp, "-o", tmp_path / "mlp.lwc", "--sparsity", "0.5", "--target", "stm32f4")
    assert "from ONNX Runtime (0.0001 allowed), run by qemu-system-arm" in done.out
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ("--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out")
    assert lwc("run", tmp_path / "mlp.lwc", *arguments, "--via", "qemu").code == 0
    expected = onnxruntime.InferenceSession(tmp_path / "mlp.lwc" / "mlp.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "y.npy"), expected, atol=1e-5)
    done = lwc("bench", tmp_path / "mlp.lwc", "--via", "qemu")
    assert done.code == TargetError.exit_code
    assert "stm32f4 is emulated without a clock: measure on the board itself" in done.err


@pytest.mark.parametrize("via", ["telnet", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "QEMU"])
def test_other_places_are_refused(odd, via):
    with pytest.raises(OptionError, match=r"is no place to run: an address is ssh://USER@HOST"):
        open_elsewhere(Linkable.of_lowered(odd), via, 1)


def test_missing_clients_are_named(odd, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for via, words in (("ssh://board", "package openssh-client"), ("adb", "package adb")):
        with pytest.raises(ToolchainError, match=words):
            open_elsewhere(Linkable.of_lowered(odd), via, 1)


# By ssh, to a server of the test's own on this machine.


@dataclass
class Board:
    address: str
    folder: Path
    port: int


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """An sshd that lets one key in, and `ssh` on the PATH with that key."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    client = shutil.which("ssh")
    if not server or not client:
        pytest.skip("needs OpenSSH's client and server (Debian: openssh-client, openssh-server)")
    folder = tmp_path_factory.mktemp("board")
    for key in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd.conf").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
        encoding="utf-8",
    )
    host_key = (folder / "host.pub").read_text(encoding="utf-8")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="utf-8")
    use_key(folder, "user", "known")
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {folder}/ssh.conf "$@"\n', encoding="utf-8")
    (folder / "ssh").chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([server, "-f", folder / "sshd.conf", "-D", "-E", folder / "log"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Board(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder, port)
    finally:
        process.terminate()
        process.wait()


def use_key(folder, key, known):
    (folder / "ssh.conf").write_text(
        f"IdentityFile {folder}/{key}\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/{known}\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n",
        encoding="utf-8",
    )


@pytest.fixture
def ssh(board, monkeypatch):
    monkeypatch.setenv("PATH", f"{board.folder}:{os.environ['PATH']}")
    use_key(board.folder, "user", "known")
    return board


def test_ssh_copies_runs_fetches_and_cleans_up(odd, ssh):
    with open_elsewhere(Linkable.of_lowered(odd), ssh.address, 2) as session:
        folder = Path(session._place._folder)
        np.testing.assert_array_equal(
            session.run({"values": VALUES, "ids": IDS})["doubled"].ravel()[1:], [2, 4, 6, 8, 10]
        )
        assert session.where == ssh.address
        assert (folder / "runner").stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(session.time({"values": VALUES, "ids": IDS}, 0.01).runs) > 5
        with pytest.raises(TargetError, match=r"crashed \(SIGSEGV\)"):
            session.run({"values": np.full((2, 3), 11, np.float32), "ids": IDS})
        session.limit_seconds = 1
        with pytest.raises(NotRunError, match="still at work after 1 s"):
            session.run({"values": np.full((2, 3), 1000, np.float32), "ids": IDS})
    assert not folder.exists()


def test_ssh_cleans_up_when_linking_fails(odd, ssh, monkeypatch):
    made = []
    monkeypatch.setattr(
        elsewhere.Ssh, "put", lambda self, name, contents: pytest.fail("nothing can be copied"), raising=True
    )
    original = elsewhere.Ssh._open

    def opened(self):
        original(self)
        made.append(Path(self._folder))
        assert made[0].is_dir()

    monkeypatch.setattr(elsewhere.Ssh, "_open", opened)
    with pytest.raises(ToolchainError, match="could not link a static program"):
        open_elsewhere(Linkable.of_lowered(replace(odd, archive=b"!<arch>\n")), ssh.address, 1)
    assert not made[0].exists()


def test_ssh_to_another_kind_of_machine(odd, ssh, monkeypatch):
    monkeypatch.setattr(elsewhere, "link_program", lambda *_: b"\x7fELF for nothing that there is")
    with (
        open_elsewhere(Linkable.of_lowered(odd), ssh.address, 1) as session,
        pytest.raises(NotRunError, match=rf"could not be started.*machine there is {os.uname().machine}, the code is"),
    ):
        session.run({"values": VALUES, "ids": IDS})


@pytest.mark.parametrize(
    ("key", "known", "words"),
    [
        ("other", "known", r"cannot be reached: .*Permission denied.*asks for no password.*ssh-copy-id"),
        ("user", "none", r"cannot be reached: .*Host key verification failed.*connect once by hand"),
    ],
)
def test_ssh_that_is_not_let_in(odd, ssh, key, known, words):
    use_key(ssh.folder, key, known)
    with pytest.raises(NotRunError, match=words):
        open_elsewhere(Linkable.of_lowered(odd), ssh.address, 1)


def test_ssh_to_nobody(odd, ssh):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"ssh://nobody@127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            NotRunError, match=f"{address} cannot be reached: .*refused; check that `ssh {address} true`"
        ):
            open_elsewhere(Linkable.of_lowered(odd), address, 1)


def test_an_artifact_runs_and_is_timed_by_ssh(mlp, ssh, tmp_path, lwc):
    """The whole way, from the command line and from Python, with code for this machine."""
    lwc_compiler.compile(mlp, tmp_path / "mlp.lwc", lwc_compiler.Recipe(prune=lwc_compiler.PruneOptions(sparsity=0.5)))
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    with load(tmp_path / "mlp.lwc") as session:
        expected = session.run({"x": x})["y"]
    with lwc_compiler.load(tmp_path / "mlp.lwc", via=ssh.address) as remote:
        np.testing.assert_array_equal(remote.run({"x": x})["y"], expected)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out"
    done = lwc("run", tmp_path / "mlp.lwc", "--input", f"x={tmp_path}/x.npy", "--output-dir", out, "--via", ssh.address)
    assert (done.code, done.err) == (0, "")
    np.testing.assert_array_equal(np.load(out / "y.npy"), expected)
    arguments = ("--via", ssh.address, "--against", mlp, "--seconds", "0", "--layers")
    done = lwc("bench", tmp_path / "mlp.lwc", *arguments, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert [timing["engine"] for timing in result["timings"]] == ["lwc", "lwc, not pruned"]
    assert result["where"] == ssh.address
    assert [entry["layer"] for entry in result["layers"]] == ["fc1", "fc2", ""]
    assert all(entry["ms"] > 0 and entry["dense_ms"] > 0 for entry in result["layers"])
    assert f"1 thread by {ssh.address}" in lwc("bench", tmp_path / "mlp.lwc", *arguments[:2], "--seconds", "0").out
    limits = ("--min-speedup", "1e-6", "--max-latency-ms", "1e6", "--seconds", "0.01")
    done = lwc("gate", tmp_path / "mlp.lwc", *arguments[:4], *limits, "--json")
    assert done.code == 0, done.err
    latency, speedup = json.loads(done.out)
    assert latency["verdict"] == speedup["verdict"] == "passed"
    assert f"lwc, not pruned in turns with it on {ssh.address}" in speedup["message"]


def test_bench_elsewhere_refuses_a_model_with_other_inputs(mlp, artifact, here, monkeypatch, odd):
    monkeypatch.setattr(
        "lwc_compiler.runtime.bench.open_elsewhere", lambda *_: open_elsewhere(Linkable.of_lowered(odd), "qemu", 1)
    )
    with pytest.raises(DataError, match="has inputs x, the artifact ids, values"):
        bench(artifact.directory, against=mlp, seconds=0, via="qemu")


# By adb, to a script that does what adb does.

ADB = """\
#!/bin/sh
map() { printf %s "$1" | sed "s|/data/local/tmp|ROOT|g"; }
case $1 in
    get-state) echo device ;;
    shell) exec sh -c "$(map "$2")" ;;
    push | pull) cp "$(map "$2")" "$(map "$3")" ;;
    *) echo "adb: unknown command $1" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def adb(tmp_path, monkeypatch):
    (tmp_path / "device").mkdir()
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "adb"
    script.write_text(ADB.replace("ROOT", str(tmp_path / "device")), encoding="utf-8")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return script


def test_adb_copies_runs_fetches_and_cleans_up(odd, adb, tmp_path):
    with open_elsewhere(Linkable.of_lowered(odd), "adb", 1) as session:
        assert len(list((tmp_path / "device").iterdir())) == 1
        outputs = session.run({"values": VALUES, "ids": IDS})
        np.testing.assert_array_equal(outputs["doubled"], 2 * VALUES)
        with pytest.raises(ArtifactError, match="number of the beast"):
            session.run({"values": np.full((2, 3), 666, np.float32), "ids": IDS})
    assert not list((tmp_path / "device").iterdir())


def test_adb_without_a_device(odd, adb):
    adb.write_text('#!/bin/sh\necho "error: no devices/emulators found" >&2\nexit 1\n', encoding="utf-8")
    with pytest.raises(NotRunError, match=r"no device: error: no devices/emulators found; `adb devices` lists"):
        open_elsewhere(Linkable.of_lowered(odd), "adb", 1)


def test_adb_that_cannot_copy(odd, adb):
    adb.write_text(adb.read_text(encoding="utf-8").replace("push | pull)", "pull)"), encoding="utf-8")
    with pytest.raises(NotRunError, match=r"adb cannot push .*runner: adb: unknown command push"):
        open_elsewhere(Linkable.of_lowered(odd), "adb", 1)
