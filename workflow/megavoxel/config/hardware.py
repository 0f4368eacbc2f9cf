"""The hardware file: devices that a study can name, and what a job on one asks for. The site's file, slurm/site.yaml:
what a cluster needs beside its profile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import Count, Name, NotNegative, Parts, Positive, Text, between, refuse
from megavoxel.config.records import from_file, record, rule
from megavoxel.config.yaml_files import parse_yaml, read_yaml
from megavoxel.errors import UserError, closest
from megavoxel.files import write_text

ModelOfGpu = Annotated[
    str, Field(pattern="^[A-Za-z0-9_.]+$", description="allowed: letters, digits, '_' and '.', as Slurm names GPUs")
]
"""It reaches a shell unquoted, as part of an option of Slurm's."""
Reader = Callable[[str], Any]
Resources = dict[str, Annotated[str | int | float, Field(description="a text or number")]]
TEXTS = (
    "slurm_account", "slurm_partition", "clusters", "cluster", "slurm_cluster", "qos", "constraint", "slurm_extra",
    "gres", "mpi", "mem", "tmpdir",
)  # fmt: skip
NUMBERS = {
    "mem_mb": "whole MB", "mem_mb_per_cpu": "whole MB", "disk_mb": "whole MB", "nodes": "a whole number",
    "tasks": "a whole number", "tasks_per_node": "a whole number", "tasks_per_gpu": "a whole number",
    "cpus_per_task": "a whole number", "cpus_per_gpu": "a whole number", "gpu": "a whole number",
}  # fmt: skip
"""Resources that Snakemake or its Slurm plugin know, and their units: it ignores all others without a word."""
RUNTIME = re.compile(r"[0-9]+|[0-9.]+ ?(s|m|h|d|w)")
ASK_BY = ("gpus", "gres")


OWN = Path("config/hardware.local.yaml")
"""Devices that users have added or changed; a file of its own, so that an update of the workflow leaves it alone."""
SHIPPED = Path(__file__).with_name("hardware.yaml")
"""The hardware file that is part of the package; in a checkout a link to config/hardware.yaml."""
OWN_HEAD = "# Devices of this site, beside those of config/hardware.yaml; keys given here replace those given there."


def _or_empty(values: dict[str, Any] | None) -> dict[str, Any]:
    return values or {}


@record
class DeviceKeys:
    """One kind of device, and the job that uses one of it."""

    kind: Literal["cpu", "gpu"]
    """Whether jobs on it compute on the processor, or ask for GPUs."""
    memory_gib: Positive | None = None
    """Memory of the device in GiB; None for the host's own."""
    overhead_gib: NotNegative = 1.0
    """Memory in GiB that a process needs before any network is there: libraries, and the CUDA context on a GPU."""
    workspace: NotNegative = 1.0
    """Memory that convolutions take for themselves, in units of input and output of the largest one in float32."""
    connection_gib: NotNegative = 0.25
    """Memory in GiB that NCCL takes for itself in each connection to other GPUs of a job; assumed, not measured."""
    teraflops: dict[Literal["float32", "half"], Positive] = field(default_factory=dict)
    """Sustained rate of training in 10¹² operations per second, by `float32` and `half` (bfloat16, float16)."""
    gigabytes_per_second: dict[Literal["float32", "half"], Positive] = field(default_factory=dict)
    """Rate in 10⁹ bytes per second at which operations other than convolutions read and write in a step, by `float32`
    and `half`; without one their time is in `teraflops`."""
    channels_at_once: Count = 1
    """Channels of a voxel that an instruction works on: the time of convolutions and norms goes by whole groups of
    them. 16 on a processor with AVX-512, 8 with AVX2; 1: the rates hold for any number."""
    bfloat16: bool = True
    """Whether a GPU computes in bfloat16 by itself; without, a classifier trains in float32 by default."""
    step_milliseconds: NotNegative = 0.0
    """Time of a pass through the network that does not depend on its size."""
    most_devices: Parts = 1
    """Devices that one job may use."""
    devices_per_node: Count | None = None
    """Devices of one node, beyond which a training job takes several nodes; None: as many as a job may use."""
    gpu_model: ModelOfGpu | None = None
    """Name of this GPU model on the cluster; None: jobs take any GPU."""
    link_gib_per_second: Positive = 10.0
    """Rate at which two devices of a job exchange data."""
    cpus_per_job: Count = 8
    """The most CPU cores that a training or prediction job asks for, per device."""
    host_memory_mb: Count = 16000
    """Host memory of such a job in MB, per device, at its first attempt, where no plan says what it needs."""
    runtime_minutes: Count = 1440
    """The most minutes that such a job asks for at any attempt, and what it asks for where no rate is known: the limit
    of your partition."""
    workers: Annotated[int, between(0, 64)] = 2
    """Processes that load and augment patches for a device of segmentation, where `training.workers` is `auto`; 0: the
    training process itself."""
    reading_milliseconds: NotNegative = 5.0
    """Time of a core to read 10⁶ voxels of one channel of a patch and to hand them on."""
    augmentation_milliseconds: NotNegative = 43.0
    """Time of a core to augment them with the default probabilities, on average; with the default of both a patch of
    128³ voxels takes 0.1 s."""
    source: str = ""
    """Source of the figures, for readers of the file."""


@record
class Device(DeviceKeys):
    """A device of the hardware file."""

    name: Text
    """Its name in the file, or what a machine without an entry is called."""

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
        """This device for jobs that cannot take several nodes."""
        return replace(self, most_devices=min(self.most_devices, self.devices_per_node or self.most_devices))


@record
class HardwareFile:
    """The devices that a study can name, and what a job on one asks for."""

    devices: Annotated[dict[Name, DeviceKeys], Field(min_length=1)]
    """Devices by name."""


def _check_resource(name: str, value: float | str, key: str) -> None:
    """Refuses a value of a resource that is in another unit than it is taken for."""
    if name == "ask_by" and value not in ASK_BY:
        refuse(f"{value!r} is not allowed; gpus or gres", key)
    if name == "runtime" and not RUNTIME.fullmatch(str(value)):
        refuse(f"{value!r} is not allowed; minutes as a whole number, or a text such as 36h or 2d", key)
    if name in NUMBERS and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        refuse(f"{value!r} is not allowed; {NUMBERS[name]}", key)
    if name in TEXTS and not isinstance(value, str):
        refuse(f"{value!r} is not allowed; a text, in quotes where it is a number", key)


@record
class Site:
    """Settings of a cluster that slurm/config.yaml does not have: account, partitions, scratch folder."""

    all: Annotated[Resources | None, AfterValidator(_or_empty)] = field(default_factory=dict)
    """Resources of every job, by the names of the Slurm plugin, each with a text or number."""
    gpu: Annotated[Resources | None, AfterValidator(_or_empty)] = field(default_factory=dict)
    """Resources of jobs that ask for a GPU, in place of those; `gpu_model`, the cluster's name of the device; and
    `ask_by`: `gpus` (default, `sbatch --gpus`) or `gres` (`--gres=gpu:N`), for sites that know only that."""
    scratch: Text | None = None
    """Folder for temporary files on the nodes; variables of the environment in it are filled in there. None: the
    system's."""
    options: Annotated[dict[str, Any] | None, AfterValidator(_or_empty)] = field(default_factory=dict)
    """Options of Snakemake and of its Slurm plugin, by name."""

    @rule
    def _resources_are_known(self) -> None:
        for section, own in (("all", ()), ("gpu", ("gpu_model", "ask_by"))):
            known = (*TEXTS, *NUMBERS, "runtime", *own)
            for name, value in getattr(self, section).items():
                if name not in known:
                    refuse(
                        f"neither Snakemake nor its Slurm plugin knows this resource{closest(name, known)}; options of "
                        "sbatch that have no name there are given by slurm_extra",
                        f"{section}.{name}",
                    )
                _check_resource(name, value, f"{section}.{name}")

    def check_options(self, known: Mapping[str, Reader | None], *, source: str) -> None:
        """Refuses options that are not known, and values that cannot be read.

        Args:
            known: by name what reads the text of a value; None: nothing.
            source: the site's file.

        Raises:
            UserError: naming the file, the option, and the known one that is nearest.
        """
        for name, value in self.options.items():
            if name not in known:
                raise UserError(
                    f"{source}: options.{name}: neither Snakemake nor its Slurm plugin has an option --{name}"
                    f"{closest(name, known)}"
                )
            reader = known[name]
            if reader is not None and isinstance(value, str | int | float):
                try:
                    reader(str(value))
                except Exception as fault:  # of Snakemake's own kinds as well
                    raise UserError(
                        f"{source}: options.{name}: {value!r} is not allowed; Snakemake cannot read it ({fault})"
                    ) from None

    @property
    def asks_by_gres(self) -> bool:
        """Whether jobs ask for GPUs by `--gres`."""
        return self.gpu.get("ask_by") == "gres"

    def default_resources(self) -> dict[str, Any]:
        """Values for Snakemake's `default-resources`, which evaluates them as Python: texts are quoted."""
        resources = {name: repr(value) if isinstance(value, str) else value for name, value in self.all.items()}
        if self.scratch:
            # Local rules are given it as well, on machines that may lack the folder.
            usable = f"__import__('os').access({self.scratch!r}, 3)"
            resources["tmpdir"] = f"{self.scratch!r} if {usable} else system_tmpdir"
        return resources


def load_site(path: Path) -> Site:
    """Reads a site's file; without one a site needs nothing.

    Raises:
        UserError: the file is wrong.
    """
    return from_file(Site, read_yaml(path), where=str(path)) if path.exists() else Site()


def load_hardware(path: Path) -> dict[str, Device]:
    """Reads the hardware file and the own devices of the site: devices by name.

    Raises:
        UserError: a file is wrong.
    """
    values = read_yaml(path)
    devices = _devices(values, str(path))
    for own in own_files(path):
        values = _with_own(values, read_yaml(own), str(own))
        devices = _devices(values, str(own))
    return devices


def bring_hardware(path: Path) -> bool:
    """Writes the hardware file that megavoxel comes with where there is none; returns whether it was written."""
    if path.exists():
        return False
    write_text(path, SHIPPED.read_text(encoding="utf-8"))
    return True


def own_files(path: Path) -> list[Path]:
    """Files of devices that users have added or changed: beside the hardware file, and in the working directory."""
    places = {place.resolve(): place for place in (path.with_name(OWN.name), OWN)}
    return [place for place in places.values() if place.is_file()]


def load_device(path: Path, name: str, *, source: str) -> Device:
    """Reads the hardware file at `path` and picks the device `name`, which `source` (a study file) refers to.

    Raises:
        UserError: the file is wrong or has no such device.
    """
    devices = load_hardware(path)
    if name not in devices:
        raise UserError(
            f"{source}: hardware: {path} has no device '{name}'; allowed: {', '.join(devices)}"
            f"{closest(name, devices)}; to add another, give it 'kind' and 'memory_gib' in {OWN}"
        )
    return devices[name]


def _devices(values: dict[str, Any], source: str) -> dict[str, Device]:
    devices = from_file(HardwareFile, values, where=source).devices
    return {name: Device(name=name, **vars(keys)) for name, keys in devices.items()}


def _with_own(values: dict[str, Any], own: dict[str, Any], source: str) -> dict[str, Any]:
    """The devices of a file, in which own ones replace key by key those of the same name."""
    devices = own.get("devices")
    if not isinstance(devices, dict) or set(own) != {"devices"}:
        raise UserError(f"{source}: expected the key 'devices' with devices by name, as in config/hardware.yaml")
    merged = dict(values["devices"])
    for name, keys in devices.items():
        known = merged.get(name, {})
        merged[name] = {**known, **keys} if isinstance(keys, dict) else keys
    return {"devices": merged}


def update_device(path: Path, name: str, values: dict[str, Any], *, base: Path | None = None) -> None:
    """Writes keys of a device into a file of devices; its comments and all other lines stay as they are.

    Args:
        path: the file, with devices in block style; it is made if it is not there, and so is the device.
        name: of the device.
        values: by key; the device's other keys stay.
        base: the hardware file to which this one adds, if any.

    Raises:
        UserError: the file would no longer be valid.
    """
    lines = path.read_text().splitlines() if path.exists() else [OWN_HEAD, "devices:"]
    heads = [index for index, line in enumerate(lines) if line.split("#")[0].rstrip() == f"  {name}:"]
    if not heads:
        heads = [len(lines)]
        lines.append(f"  {name}:")
    begin = heads[0]
    end = next((index for index in range(begin + 1, len(lines)) if _indent(lines[index]) <= 2), len(lines))
    kept = _without(lines[begin + 1 : end], set(values))
    added = [f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    text = "\n".join([*lines[: begin + 1], *kept, *added, *lines[end:]]) + "\n"
    written = parse_yaml(text, where=str(path))
    _devices(written if base is None else _with_own(read_yaml(base), written, str(path)), str(path))
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
