"""The hardware file: devices that a study can name, and what a job on one asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megavoxel.config.records import from_plain
from megavoxel.config.schema import closest, read_yaml, validate
from megavoxel.errors import UserError


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
    step_milliseconds: float = 0.0
    """Time of a pass through the network that does not depend on its size."""
    most_devices: int = 1
    """Devices that one job may use."""
    link_gib_per_second: float = 10.0
    """Rate at which two devices of a job exchange data."""
    cpus_per_job: int = 8
    """CPU cores of a training or prediction job."""
    host_memory_mb: int = 16000
    """Host memory of such a job in MB, first attempt."""
    runtime_minutes: int = 1440
    """Wall time of such a job in minutes, first attempt."""
    source: str = ""
    """Where the figures come from."""

    @property
    def gpus(self) -> int:
        """GPUs of a job."""
        return 1 if self.kind == "gpu" else 0


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
