import platform
import subprocess
from importlib import resources
from itertools import pairwise

import pytest

from lwc_compiler import targets
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.errors import TargetError
from lwc_compiler.targets import all_boards, all_targets, arm, cuda, find_target, host, missing_features, x86

V3_FLAGS = "fpu sse2 avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4_FLAGS = V3_FLAGS + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Makes this machine an x86-64 CPU with the given flags."""

    def be(flags: str, machine: str = "x86_64") -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: test\nflags\t\t: {flags}\nbugs\t\t:\n", encoding="utf-8")
        monkeypatch.setattr(host, "_CPUINFO", cpuinfo)
        monkeypatch.setattr(platform, "machine", lambda: machine)

    return be


def test_targets_are_consistent():
    names = [target.name for target in (*all_targets(), *all_boards())]
    assert len(set(names)) == len(names)
    for target in all_targets():
        assert target.vector_bits % 32 == 0
        assert find_target(target.name) is target
        assert bool(target.machines) == (target.os != "none")
        assert (target.gpu is not None) == (target.family == "cuda")
        assert not target.ram_bytes
        if target.emulator:
            assert target.emulator[0].startswith("qemu-")
            assert target.os == "linux"
        assert not target.flash_bytes
        assert target.family in targets._FAMILIES
        if target.variants:
            assert target.features == target.variants[0].features
            assert all(a.features < b.features for a, b in pairwise(target.variants))


def test_boards_are_targets_with_memory():
    for board in all_boards():
        assert find_target(board.name) == board
        assert board.ram_bytes
        assert bool(board.flash_bytes) == (board.os == "none")
    assert (find_target("rpi4").cpu, find_target("stm32f4").cpu) == ("cortex-a72", "cortex-m4")


def test_boards_with_a_gpu_have_their_own():
    h100, h200 = find_target("h100"), find_target("h200")
    assert h100.gpu == find_target("cuda:sm_90").gpu
    assert h100.gpu.architectures == h200.gpu.architectures == (90,)
    assert h100.gpu.gigabytes_a_second < h200.gpu.gigabytes_a_second
    assert find_target("jetson-orin-nano").machines == ("aarch64",)


def test_the_library_for_all_gpus_has_the_code_of_each_on_its_platform():
    every = find_target("cuda")
    one = [t.gpu.architectures[0] for t in all_targets() if t.name.startswith("cuda:") and t.triple == every.triple]
    assert every.gpu.architectures == tuple(one)
    assert all(t.name == f"cuda:sm_{t.gpu.architectures[0]}" for t in all_targets() if t.gpu and t is not every)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        (None, set()),
        (70, set()),
        (75, {"cuda:sm_75", "cuda"}),
        (89, {"cuda:sm_80", "cuda:sm_86", "cuda:sm_89", "cuda"}),
        (103, {"cuda:sm_100", "cuda"}),
        (110, set()),
        (130, {"cuda"}),
    ],
)
def test_a_gpu_runs_code_of_its_major_version_and_no_later_minor_one(monkeypatch, capability, runs):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cuda, "host_gpu", lambda: capability and {"capability": capability})
    names = {target.name for target in all_targets() if target.gpu and not missing_features(target)}
    assert names - {board.name for board in all_boards()} == runs


def test_host_is_never_a_gpu(monkeypatch, cpu):
    cpu(V3_FLAGS)
    monkeypatch.setattr(cuda, "host_gpu", lambda: {"capability": 90})
    assert find_target("host").gpu is None


def test_artifacts_can_test_for_every_feature():
    runtime = (resources.files("lwc_compiler.runtime") / "c" / "cpu.c").read_text(encoding="utf-8")
    for feature in frozenset().union(*(target.features for target in all_targets() if target.gpu is None)):
        assert f"#define LWC_HAS_{feature} " in runtime


@pytest.mark.parametrize(("flags", "name"), [(V3_FLAGS, "x86-64-v3"), (V4_FLAGS, "x86-64-v4")])
def test_host_is_the_most_capable_target_that_runs(cpu, flags, name):
    cpu(flags)
    assert find_target("host").name == name


def test_one_missing_feature_lowers_the_host_target(cpu):
    cpu(V4_FLAGS.replace(" avx512vl", ""))
    assert find_target("host").name == "x86-64-v3"
    assert missing_features(find_target("x86-64-v4")) == ["avx512vl"]


def test_old_cpu_is_refused_with_what_it_lacks(cpu):
    cpu("fpu sse2 avx")
    with pytest.raises(TargetError, match=r"x86_64.*x86-64-v3, needs avx2, bmi, bmi2, f16c, fma, lzcnt, movbe"):
        find_target("host")


def test_other_machine_is_refused_by_name(cpu):
    cpu(V4_FLAGS, machine="s390x")
    with pytest.raises(TargetError, match="s390x"):
        find_target("host")


def test_missing_cpuinfo_means_no_features(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "none")
    assert x86.host_features() == frozenset()


@pytest.mark.parametrize(
    ("typed", "meant"), [("x86-64-v33", "x86-64-v3"), ("x86_64_v4", "x86-64-v4"), ("hots", "host")]
)
def test_unknown_target_names_the_closest(typed, meant):
    with pytest.raises(TargetError, match=rf"unknown target '{typed}': the closest is '{meant}'.*lwc targets"):
        find_target(typed)


def test_code_for_another_platform_does_not_run_here():
    assert missing_features(find_target("cortex-m7")) == ["thumbv7em-none-eabihf"]


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("aarch64", "Features: fp asimd", "cortex-a72"),
        ("aarch64", "Features: fp asimd atomics asimdhp asimddp", "neoverse-n1"),
        ("armv7l", "Features: half thumb neon vfpv3", "cortex-a9"),
        ("armv7l", "Features: half thumb neon vfpv3 vfpv4", "cortex-a7"),
        ("riscv64", "isa: rv64imafdc_zicsr", "riscv64"),
        ("riscv64", "isa: rv64imafdcv_zicsr", "rv64gcv"),
    ],
)
def test_host_on_other_machines(tmp_path, monkeypatch, machine, features, name):
    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{features}\n\n", encoding="utf-8")
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert find_target("host").name == name


@pytest.mark.parametrize(("vector_bytes", "name"), [(32, "neoverse-v1"), (16, "neoverse-n1")])
def test_code_for_sve_needs_its_vectors_to_be_long_enough(tmp_path, monkeypatch, vector_bytes, name):
    features = " ".join(find_target("neoverse-v1").features - {"sve256"})
    (tmp_path / "cpuinfo").write_text(f"Features: {features}\n", encoding="utf-8")
    (tmp_path / "length").write_text(f"{vector_bytes}\n", encoding="utf-8")
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(arm, "_SVE_BYTES", tmp_path / "length")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert find_target("host").name == name


def test_target_unlike_any_other_is_refused():
    with pytest.raises(TargetError, match=r"unknown target ''.*`lwc targets`"):
        find_target("")


def test_features_are_what_the_c_compiler_can_ask_for(tmp_path):
    features = sorted(set().union(*(target.features for target in all_targets() if target.family == "x86")))
    checks = " && ".join(f'__builtin_cpu_supports("{feature}")' for feature in features)
    (tmp_path / "check.c").write_text(f"int f(void) {{ return {checks}; }}\n", encoding="utf-8")
    subprocess.run([*find_compiler().command, "-c", "check.c", "-o", "check.o"], cwd=tmp_path, check=True)
