"""The choice of a device, on machines of every kind: what a machine has is made up here, the choice is real."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from jdistill.errors import ConfigError
from jdistill.run import devices
from jdistill.run.devices import check_device, describe_devices, see_one_gpu, select_device, why_no_gpu


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(driver, plugin)``: what the driver's file says, and the CUDA that JAX's packages are for."""

    def make(driver: str | None, plugin: str | None) -> None:
        monkeypatch.setattr(devices, "gpu_driver", lambda: driver)
        monkeypatch.setattr(devices, "_gpu_is_there", lambda: driver is not None)
        monkeypatch.setattr(devices, "_cuda_version", lambda: plugin)

    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JDISTILL_CUDA_VISIBLE_DEVICES", raising=False)
    yield make
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("driver", "plugin", "reason"),
    [
        (None, None, "no CUDA packages; add them with 'uv run --extra cuda ...'"),
        ("580.95.05", None, "no CUDA packages"),
        (None, "13", "no NVIDIA driver"),
        (
            "550.54.14",
            "13",
            "550.54.14 is too old for CUDA 13; install 580 or newer or use 'uv run --extra cuda12 ...'",
        ),
        ("470.82", "12", "470.82 is too old for CUDA 12; install 525 or newer"),
        ("580.95.05", "13", "JAX finds no GPU"),
    ],
)
def test_a_gpu_that_cannot_be_had_says_what_is_missing(machine, driver, plugin, reason):
    machine(driver, plugin)
    assert reason in why_no_gpu()


def test_a_gpu_that_is_there_is_used_or_spoken_of(machine, capsys):
    """These tests run on the CPU, so JAX does not use the GPU that the machine is said to have."""
    machine(None, "13")
    check_device()
    assert not capsys.readouterr().out, "no GPU, nothing to say"
    machine("580.95.05", None)
    check_device()
    assert "There is a GPU, and JAX computes on the CPU: JAX has no CUDA packages" in capsys.readouterr().out
    machine("550.54.14", "13")
    with pytest.raises(ConfigError, match=r"there is a GPU, and JAX computes on the CPU: its driver .* --device cpu"):
        check_device()
    jax.config.update("jax_platforms", "cpu")  # Somebody means it.
    check_device()


def test_the_drivers_version_is_read(monkeypatch, tmp_path):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)"
    monkeypatch.setattr(Path, "read_text", lambda self: line)
    assert devices.gpu_driver() == "580.95.05"


def test_a_device_that_is_not_there_is_one_line(machine):
    machine(None, "13")
    for name in ("cuda", "cuda:0", "gpu"):
        with pytest.raises(ConfigError, match=rf"--device {name}: ") as told:
            select_device(name)
        assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match="Isaac Lab is on cuda:0, which JAX is not: "):
        select_device("cuda:0", "Isaac Lab")


def shown(index: int) -> str:
    import os

    see_one_gpu(index)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_one_gpu_is_one_of_those_that_the_process_was_given(machine, monkeypatch):
    assert shown(1) == "1" and shown(1) == "1" and shown(0) == "0", "a second choice counts as the first did"
    monkeypatch.delenv("JDISTILL_CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-8932f937")
    assert shown(1) == "6" and shown(2) == "GPU-8932f937" and shown(0) == "4"
    with pytest.raises(ConfigError, match=r"--device cuda:3: CUDA_VISIBLE_DEVICES=4,6,GPU-8932f937 shows 3 only"):
        see_one_gpu(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # Somebody has changed their mind.
    assert shown(1) == "3"
    monkeypatch.delenv("JDISTILL_CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shown(1) == "", "all are hidden, and stay so"


def test_a_run_says_where_it_computes():
    gpu = {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "driver": "580.95.05"}
    assert describe_devices({"kind": "cpu", "count": 1}, 100) == "Device: cpu"
    assert describe_devices({**gpu, "count": 1}, 100) == "Device: NVIDIA H100 80GB HBM3 (driver 580.95.05)"
    several = "Devices: 8 x NVIDIA H100 80GB HBM3 (driver 580.95.05), 512 environments on each"
    assert describe_devices({**gpu, "count": 8}, 512) == several
