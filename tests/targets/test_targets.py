"""The table of CPUs: LLVM agrees with it, names resolve, and this machine is found."""

import platform

import pytest
from qcompile.kernels.cpu.isa import get_isa
from qcompile.targets import TARGETS, CompileError, get_target, host, supports
from tvm.target import Target as TvmTarget
from tvm.target.codegen import llvm_cpu_has_features, llvm_is_valid_cpu

CORTEX_A76 = "processor: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
CORTEX_A55 = "processor: 1\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends to be another machine: machine('aarch64', text of /proc/cpuinfo)."""

    def pretend(arch: str, cpuinfo: str) -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: arch)
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        for function in (host.host_arch, host.host_flags, host.host_parts):
            function.cache_clear()

    yield pretend
    for function in (host.host_arch, host.host_flags, host.host_parts):
        function.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_llvm_knows_the_cpu_and_every_feature(name):
    target = get_target(name)
    assert llvm_is_valid_cpu(target.mcpu, target.triple), f"LLVM does not know -mcpu={target.mcpu}"
    tvm_target = TvmTarget(target.llvm)
    missing = [feature for feature in target.features if not llvm_cpu_has_features(feature, tvm_target)]
    assert not missing, f"{name}: LLVM would not select {missing}"
    assert not llvm_cpu_has_features("sve", tvm_target), "SVE is switched off on phones"
    assert get_isa(target).features <= target.features and target.cpu == name and 0 < target.l1 < target.l2
    assert target.unsigned_activations == (target.arch == "x86_64")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cortex-a76", "arm-a76"),
        ("arm-cortex-a76", "arm-a76"),
        ("ARM-A76", "arm-a76"),
        ("cortex_x1", "arm-x1"),
        ("apple-m1", "apple-m1"),
        ("x86-avx2", "x86-avx2"),
    ],
)
def test_aliases(alias, name):
    assert get_target(alias).name == name


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(CompileError, match=r"unknown target 'pentium'.*arm-a53.*host"):
        get_target("pentium")


@pytest.mark.parametrize(
    ("arch", "cpuinfo", "name"),
    [
        ("aarch64", CORTEX_A55 + CORTEX_A76, "arm-a76"),  # the big core of a pair
        ("aarch64", "Features: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd08\n", "arm-a72"),
        ("aarch64", "Features: asimd asimddp i8mm sve\nCPU implementer: 0x41\nCPU part: 0xfff\n", "arm-a710"),
        ("x86_64", "flags\t: avx2 fma bmi1 bmi2 f16c abm movbe\n", "x86-avx2"),
        ("x86_64", "flags\t: avx2 fma bmi1 bmi2 f16c abm movbe avx_vnni\n", "x86-avxvnni"),
        (
            "amd64",
            "flags : avx2 fma bmi1 bmi2 f16c abm movbe avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni\n",
            "x86-avx512vnni",
        ),
    ],
)
def test_host_is_the_best_entry_that_runs(machine, arch, cpuinfo, name):
    machine(arch, cpuinfo)
    target = get_target("host")
    assert (target.name, target.cpu) == ("host", name)
    assert supports(target)


@pytest.mark.parametrize(("arch", "cpuinfo"), [("riscv64", "isa: rv64gc\n"), ("x86_64", "flags: sse2\n")])
def test_host_without_an_entry_is_refused(machine, arch, cpuinfo):
    machine(arch, cpuinfo)
    with pytest.raises(CompileError, match="none of the CPUs"):
        get_target("host")


def test_a_core_that_lacks_a_feature_rules_the_target_out(machine):
    machine("aarch64", CORTEX_A76 + "Features: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd03\n")
    assert not supports(get_target("arm-a76"))
    assert supports(get_target("arm-a53"))
