"""Which device of the hardware file a GPU is, by what its driver says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from megavoxel.config.hardware import Device

TOLERANCE = 0.1
"""Share of the nominal memory by which a driver may report less."""


def known_device(name: str, memory_gib: float, devices: Mapping[str, Device]) -> str | None:
    """Name of the device in the hardware file that a GPU is; None: there is none.

    Args:
        name: as the driver says, such as `NVIDIA GeForce RTX 3090` or `NVIDIA A100-SXM4-40GB`.
        memory_gib: as the driver says, which is less than the nominal size.
        devices: of the hardware file; a name is words with dashes, of which those but a size in GB are the model.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    fitting = [
        (len(_model(device)), -abs(device.memory_gib - memory_gib), key)
        for key, device in devices.items()
        if device.kind == "gpu" and device.memory_gib and _model(device) <= words and _is_close(device, memory_gib)
    ]
    return max(fitting)[2] if fitting else None


def _model(device: Device) -> set[str]:
    return {word for word in device.name.split("-") if word != f"{device.memory_gib:g}"}


def _is_close(device: Device, memory_gib: float) -> bool:
    return abs(device.memory_gib - memory_gib) <= TOLERANCE * device.memory_gib
