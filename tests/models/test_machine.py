"""The machine as a bug report tells it."""

import mlx.core as mx

import mlx_budget.models.machine as machine_module
from mlx_budget.models.machine import (
    Memory,
    memory_of_linux,
    memory_of_mac,
    read_machine,
)

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            500000.
Pages inactive:                           20000.
Pages speculative:                         3000.
Pages throttled:                              0.
Pages wired down:                        100000.
Pages purgeable:                           1000.
"Translation faults":                 123456789.
"""
MEMINFO = """\
MemTotal:       24684084 kB
MemFree:         1000000 kB
MemAvailable:   20000000 kB
Mlocked:           18848 kB
HugePages_Total:       0
"""


def test_this_machine_is_known():
    machine = read_machine()
    assert machine.versions["mlx"] == mx.__version__
    assert "mlx-lm" in machine.versions
    assert machine.device in ("cpu", "gpu")
    assert machine.has_metal == mx.metal.is_available()
    assert machine.system and machine.python[0] == "3"
    assert machine.memory.total is not None and machine.memory.total > 1 << 30


def test_the_memory_of_a_mac_is_read():
    info = {"max_recommended_working_set_size": 22 << 30}
    memory = memory_of_mac(VM_STAT, 32 << 30, info)
    assert memory == Memory(
        total=32 << 30,
        available=34000 * 16384,
        wired=100000 * 16384,
        recommended=22 << 30,
    )
    # What Metal recommends is what a model can have.
    assert memory.for_models == 22 << 30
    assert memory_of_mac("", 1, {}) == Memory(total=1)


def test_the_memory_of_linux_is_read():
    memory = memory_of_linux(MEMINFO, {})
    assert memory == Memory(
        total=24684084 * 1024, available=20000000 * 1024, wired=18848 * 1024
    )
    assert memory.for_models == memory.total
    assert memory_of_linux("", {}).for_models is None


def test_a_mac_is_asked_for_its_limits(monkeypatch):
    answers = {
        ("vm_stat",): VM_STAT,
        ("sysctl", "-n", "hw.memsize"): str(32 << 30),
        ("sysctl", "-n", "iogpu.wired_limit_mb"): "24000",
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M3 Max",
        ("sysctl", "-n", "sysctl.proc_translated"): "1",
    }
    monkeypatch.setattr(machine_module.sys, "platform", "darwin")
    monkeypatch.setattr(machine_module.platform, "mac_ver", lambda: ("15.1", "", ""))
    monkeypatch.setattr(machine_module, "_printed", lambda *c: answers.get(c, ""))
    machine = read_machine()
    assert (machine.system, machine.chip) == ("macOS 15.1", "Apple M3 Max")
    assert machine.is_translated
    assert machine.memory.wired_limit == 24000 << 20
    assert machine.memory.total == 32 << 30


def test_variables_that_change_what_is_computed_are_told(monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    variables = read_machine().variables
    assert variables["MLX_ENABLE_TF32"] == "0"
    assert "hf_secret" not in str(variables)
