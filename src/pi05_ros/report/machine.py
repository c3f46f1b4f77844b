"""Which machine a figure was measured on."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("torch", "mujoco", "numpy", "ros-rclpy")


def machine() -> dict[str, str | int | float]:
    """Describe processor, memory, system and the versions that matter to speed."""
    usable = len(os.sched_getaffinity(0))
    described: dict[str, str | int | float] = {
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            described[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # rclpy of a ROS installation is no Python distribution of that name
            continue
    return described


def one_line(described: dict[str, str | int | float]) -> str:
    """Write a machine as one line for tables and pages."""
    versions = ", ".join(f"{name} {described[name]}" for name in ("python", *PACKAGES) if name in described)
    hardware = f"{described['cpu']}, {described['cores']} cores, {described['memory_gb']} GB"
    return f"{hardware}; {described['system']}; {versions}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
