"""Cards by name, GPUs by NVML or nvidia-smi, and nonsense with a clear message."""

from __future__ import annotations

import os
import stat
import sys
from types import SimpleNamespace

import pytest

from forgather_dsl.dsl import ConfigError
from forgather_dsl.plan import hardware
from forgather_dsl.plan.hardware import GIB, parse

SMI = "GPU-aaa, NVIDIA GeForce RTX 4090, 24564\nGPU-bbb, NVIDIA GeForce RTX 3060, 12288\nGPU-ccc, Odd, [N/A]\n"


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("4x24GB", [24, 24, 24, 24]),
        ("24GB+12GB", [24, 12]),
        ("2x24GB+12gb", [24, 24, 12]),
        (" 2 x 10.5 GiB ", [10.5, 10.5]),
        ("24", [24]),
        ("2048MB", [2]),
    ],
)
def test_cards_are_named_by_number_and_memory(text, gib):
    assert [device.memory_bytes / GIB for device in parse(text).devices] == gib
    assert {device.kind for device in parse(text).devices} == {"named"}


@pytest.mark.parametrize(
    "text", ["", "x24GB", "4x", "4x24KB", "0x24GB", "4x0GB", "24GB+", "four cards", "-1x24GB", "99999x1GB"]
)
def test_nonsense_is_refused_with_what_to_write(text):
    with pytest.raises(ConfigError, match=r"write (4x24GB|1x24GB)"):
        parse(text)


def test_no_gpu_is_asked_for_unless_it_says_auto(monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: pytest.fail("asked for GPUs"))
    assert len(parse("2x8GB").devices) == 2


def test_host_memory_is_what_the_machine_or_its_group_has():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < hardware.host_memory() <= machine


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    """A program of that name on the path stands in for the driver's."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint({SMI!r}, end='') if 'uuid' in sys.argv[1] else sys.exit(1)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = parse("auto").devices
    assert [(device.name, device.memory_bytes) for device in found] == [
        ("NVIDIA GeForce RTX 4090", 24564 * 2**20),
        ("NVIDIA GeForce RTX 3060", 12288 * 2**20),
    ]
    assert {device.kind for device in found} == {"gpu"}


def test_a_machine_without_driver_has_no_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert hardware.gpus() == ()


def test_a_driver_that_hangs_is_given_up(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware._from_nvidia_smi(seconds=0.2) == []


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["RTX 3060"]),
        ("1,0", ["RTX 3060", "RTX 4090"]),
        ("GPU-b", ["RTX 3060"]),
        ("0,7,1", ["RTX 4090"]),
        ("-1", []),
        ("", []),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(monkeypatch, visible, names):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(hardware, "_from_nvidia_smi", lambda: hardware.parse_nvidia_smi(SMI))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name.removeprefix("NVIDIA GeForce ") for device in hardware.gpus()] == names


def test_pynvml_is_asked_first_when_it_is_installed(monkeypatch):
    library = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"Some Card",
        nvmlDeviceGetUUID=lambda handle: "GPU-x",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=8 * GIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(hardware, "_from_nvidia_smi", lambda: pytest.fail("asked twice"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.gpus() == (hardware.Device("Some Card", 8 * GIB, "gpu"),)
