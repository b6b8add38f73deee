"""Machine: the hardware in words, and what nvidia-smi says of it."""

from pathlib import Path

import pytest

from aebench import machine
from aebench.machine import Accelerator, accelerators, cpu_model, hardware_text, slug


def test_a_cpu_is_named_by_its_cores_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setattr(machine, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert hardware_text("cpu") == "2-core CPU x86_64 (AMD EPYC)"


def test_gpus_are_named_by_their_driver_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(machine, "accelerators", lambda: [Accelerator("NVIDIA H200", "143771 MiB")])
    assert hardware_text("cuda") == "NVIDIA H200, 16 cores"
    monkeypatch.setattr(machine, "accelerators", lambda: [Accelerator("NVIDIA H200", "143771 MiB")] * 2)
    assert hardware_text("cuda") == "2 x NVIDIA H200, 16 cores"


def test_the_processor_is_read_from_the_kernel_where_it_tells(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert cpu_model(tmp_path / "nothing") != ""


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'NVIDIA H200, 143771 MiB'", [Accelerator("NVIDIA H200", "143771 MiB")]),
        ("echo 'No devices were found'", []),
        ("exit 9", []),
    ],
)
def test_devices_are_those_the_driver_lists(
    script: str, found: list[Accelerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert accelerators() == found


def test_a_slug_can_be_part_of_a_file_name() -> None:
    assert slug("NVIDIA H200, 16 cores") == "nvidia-h200-16-cores"
