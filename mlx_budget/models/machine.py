"""The machine and what runs on it: versions, device, memory.

Knows MLX, operating systems and installed packages; nothing of models. Nothing that it
tells names the user or the machine.
"""

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

PACKAGES = (
    "mlx",
    "mlx-metal",
    "mlx-cuda",
    "mlx-lm",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "numpy",
    "click",
    "llguidance",
)
# Variables that change what MLX and the Hub's client do.
VARIABLES = (
    "HF_HUB_OFFLINE",
    "LD_PRELOAD",
    "MLX_ENABLE_TF32",
    "MLX_MAX_MB_PER_BUFFER",
    "MLX_MAX_OPS_PER_BUFFER",
    "MLX_METAL_FAST_SYNCH",
)
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; None where the system does not tell.

    Attributes:
        total: Of the machine.
        available: To a program that starts now.
        wired: Held in memory by all programs together, not to be swapped out.
        recommended: The most that Metal recommends to hold for one program, which
            generation wires.
        wired_limit: What the user has set in place of the system's own limit
            (``iogpu.wired_limit_mb``).
    """

    total: int | None = None
    available: int | None = None
    wired: int | None = None
    recommended: int | None = None
    wired_limit: int | None = None

    @property
    def for_models(self) -> int | None:
        """The most that a model and its caches can have."""
        return self.recommended or self.total


@dataclass(frozen=True)
class Machine:
    """A machine, as a bug report has to tell it.

    Attributes:
        system: Such as "macOS 15.1".
        processor: Such as "arm64".
        chip: Its name, such as "Apple M3 Max".
        python: Version and implementation.
        is_translated: Whether an Intel Python runs on Apple Silicon, where MLX cannot.
        versions: Of the packages that are installed, by name.
        device: On which MLX computes by default: "gpu" or "cpu".
        has_metal: Whether MLX has Metal.
        device_info: What MLX says of its device.
        memory: In bytes.
        variables: Those of `VARIABLES` that are set.
    """

    system: str
    processor: str
    chip: str
    python: str
    is_translated: bool
    versions: dict[str, str]
    device: str
    has_metal: bool
    device_info: dict[str, Any]
    memory: Memory
    variables: dict[str, str]


def read_machine() -> Machine:
    """What this machine is."""
    is_mac = sys.platform == "darwin"
    system = f"{platform.system()} {platform.release()}"
    if is_mac:
        system = f"macOS {platform.mac_ver()[0]}"
    info = _device_info()
    return Machine(
        system=system,
        processor=platform.machine(),
        chip=_sysctl("machdep.cpu.brand_string") or str(info.get("device_name", "")),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        is_translated=is_mac and _sysctl("sysctl.proc_translated") == "1",
        versions=_versions(),
        device=str(mx.default_device().type).rpartition(".")[2],
        has_metal=mx.metal.is_available(),
        device_info=info,
        memory=_read_memory(info),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def memory_of_mac(vm_stat: str, total: int | None, info: dict[str, Any]) -> Memory:
    """Memory as a Mac's ``vm_stat`` tells it.

    Args:
        vm_stat (str): What the program prints.
        total (int, optional): Bytes of the machine.
        info (dict): MLX's of the device.
    """
    found = re.search(r"page size of (\d+) bytes", vm_stat)
    page = int(found[1]) if found else 16384
    pages = {
        name.strip().lower(): int(number) * page
        for name, number in re.findall(r"^(.+?):\s+(\d+)\.?$", vm_stat, re.MULTILINE)
    }
    free = ("pages free", "pages inactive", "pages speculative", "pages purgeable")
    return Memory(
        total=total,
        available=sum(pages.get(name, 0) for name in free) if pages else None,
        wired=pages.get("pages wired down"),
        recommended=info.get("max_recommended_working_set_size"),
    )


def memory_of_linux(meminfo: str, info: dict[str, Any]) -> Memory:
    """Memory as Linux tells it.

    Args:
        meminfo (str): The text of ``/proc/meminfo``.
        info (dict): MLX's of the device.
    """
    found = re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    values = {name: int(number) * 1024 for name, number in found}
    return Memory(
        total=values.get("MemTotal"),
        available=values.get("MemAvailable"),
        wired=values.get("Mlocked"),
        recommended=info.get("max_recommended_working_set_size"),
    )


def _read_memory(info: dict[str, Any]) -> Memory:
    if sys.platform == "darwin":
        total = _sysctl("hw.memsize")
        memory = memory_of_mac(_printed("vm_stat"), int(total) if total else None, info)
        limit = _sysctl("iogpu.wired_limit_mb")
        if limit.isdecimal() and int(limit):
            return Memory(**{**vars(memory), "wired_limit": int(limit) * _MEGABYTE})
        return memory
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except (OSError, UnicodeError):
        text = ""
    return memory_of_linux(text, info)


def _device_info() -> dict[str, Any]:
    """What MLX says of its device; older releases ask Metal."""
    asked = getattr(mx, "device_info", None) or getattr(mx.metal, "device_info", None)
    try:
        return dict(asked()) if asked else {}
    except RuntimeError:  # that of Metal without it
        return {}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sysctl(name: str) -> str:
    """A value of a Mac's kernel, or an empty string."""
    return _printed("sysctl", "-n", name) if sys.platform == "darwin" else ""


def _printed(*command: str) -> str:
    """What a program of the system prints, or an empty string."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
