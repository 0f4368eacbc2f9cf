"""Measure this device's rate, overhead and workspace by a few training steps, and write them to your own devices."""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path

from megavoxel.config.hardware import OWN, load_device, update_device
from megavoxel.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("name", help="device of the hardware file, or of your own ones")
    parser.add_argument("--hardware", type=Path, default=Path("config/hardware.yaml"), help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto (default: of the device's kind), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")
    parser.add_argument("--dry-run", action="store_true", help="only print what was measured")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints, writes."""
    kind = load_device(arguments.hardware, arguments.name, source="megavoxel calibrate").kind

    import torch

    from megavoxel.forecast.calibration import calibrate
    from megavoxel.network.device import choose_device, set_threads

    set_threads(arguments.threads)
    device = choose_device("cpu" if arguments.device == "auto" and kind == "cpu" else arguments.device)
    if (device.type == "cpu") != (kind == "cpu"):
        raise UserError(
            f"{arguments.name} is a device of kind {kind}, and this would measure {device}: call it on a machine on "
            f"which PyTorch sees {arguments.name}"
        )
    measured = calibrate(device).keys()
    threads = torch.get_num_threads()
    on_cpu = f"{threads} thread{'s' if threads > 1 else ''}"
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    today = datetime.datetime.now(datetime.UTC).date()
    source = f"megavoxel calibrate, {today}: {what}, {platform.machine()}, torch {torch.__version__}"
    for key, value in measured.items():
        print(f"{key}: {value}")
    if not arguments.dry_run:
        own = arguments.hardware.with_name(OWN.name)
        update_device(own, arguments.name, {**measured, "source": source}, base=arguments.hardware)
        print(f"written to {own}, device {arguments.name}")
