"""The hardware file: devices that a study can name, and what a job on one asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from megavoxel.config.records import from_plain
from megavoxel.config.schema import closest, read_yaml, validate
from megavoxel.errors import UserError
from megavoxel.files import write_text


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device and the job that uses one of it."""

    name: str
    kind: str
    """`cpu` or `gpu`."""
    memory_gib: float | None = None
    """Memory of the device in GiB; None for the host's own."""
    overhead_gib: float = 1.0
    """Memory in GiB that a process needs before any network is there: libraries, and the CUDA context on a GPU."""
    workspace: float = 1.0
    """Memory that convolutions take for themselves, in units of input and output of the largest one in float32."""
    teraflops: dict[str, float] = field(default_factory=dict)
    """Sustained rate of training in 10¹² operations per second, by `float32` and `half` (bfloat16, float16)."""
    bfloat16: bool = True
    """Whether a GPU computes in bfloat16 by itself; without, a classifier trains in float32 by default."""
    step_milliseconds: float = 0.0
    """Time of a pass through the network that does not depend on its size."""
    most_devices: int = 1
    """Devices that one job may use."""
    devices_per_node: int | None = None
    """Devices of one node, beyond which a training job takes several nodes; None: as many as a job may use."""
    gpu_model: str | None = None
    """What the cluster calls this GPU; None: jobs take any."""
    link_gib_per_second: float = 10.0
    """Rate at which two devices of a job exchange data."""
    cpus_per_job: int = 8
    """The most CPU cores that a training or prediction job asks for, per device."""
    host_memory_mb: int = 16000
    """Host memory of such a job in MB, per device, at its first attempt, where no plan says what it needs."""
    runtime_minutes: int = 1440
    """The most minutes that such a job asks for at any attempt, and what it asks for where no rate is known: the limit
    of your partition."""
    source: str = ""
    """Where the figures come from."""

    @property
    def gpus(self) -> int:
        """GPUs of a job."""
        return 1 if self.kind == "gpu" else 0

    @property
    def limit_gib(self) -> float | None:
        """Memory that a forecast is held against: the device's, or on a CPU without it `host_memory_mb`."""
        if self.memory_gib is not None or self.kind != "cpu":
            return self.memory_gib
        return self.host_memory_mb / 1024

    def nodes(self, devices: int) -> int:
        """The fewest nodes that hold so many devices, the same number on each."""
        fewest = -(-devices // (self.devices_per_node or devices))
        return next(count for count in range(fewest, devices + 1) if devices % count == 0)

    def on_one_node(self) -> Device:
        """The same where a job cannot take several nodes."""
        return replace(self, most_devices=min(self.most_devices, self.devices_per_node or self.most_devices))


def load_device(path: Path, name: str, *, source: str) -> Device:
    """Reads the hardware file at `path` and picks the device `name`, which `source` (a study file) refers to.

    Raises:
        UserError: the file is wrong or has no such device.
    """
    values = read_yaml(path)
    validate(values, "hardware", source=str(path))
    devices = values["devices"]
    if name not in devices:
        known = list(devices)
        raise UserError(
            f"{source}: hardware: {path} has no device '{name}'; allowed: {', '.join(known)}{closest(name, known)}"
        )
    return from_plain(Device, {"name": name, **devices[name]}, where=f"{path}: devices.{name}")


def update_device(path: Path, name: str, values: dict[str, Any]) -> None:
    """Writes keys of a device into the hardware file; its comments and all other lines stay as they are.

    Args:
        path: the hardware file, with devices in block style.
        name: of a device that it has.
        values: by key; the device's other keys stay.

    Raises:
        UserError: the file would no longer be valid.
    """
    lines = path.read_text().splitlines()
    begin = next(index for index, line in enumerate(lines) if line.split("#")[0].rstrip() == f"  {name}:")
    end = next((index for index in range(begin + 1, len(lines)) if _indent(lines[index]) <= 2), len(lines))
    kept = _without(lines[begin + 1 : end], set(values))
    added = [f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    text = "\n".join([*lines[: begin + 1], *kept, *added, *lines[end:]]) + "\n"
    validate(yaml.safe_load(text), "hardware", source=str(path))
    write_text(path, text)


def _without(block: list[str], keys: set[str]) -> list[str]:
    """The lines of a device but those of some keys and what is indented below them."""
    kept, dropping = [], False
    for line in block:
        if _indent(line) <= 4:
            dropping = line.strip().partition(":")[0] in keys
        if not dropping:
            kept.append(line)
    return kept


def _indent(line: str) -> int:
    """Leading blanks; an empty line belongs to what is above it."""
    return len(line) - len(line.lstrip()) if line.strip() else 99
