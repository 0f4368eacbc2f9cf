"""Prediction of cases by one network or the mean logits of several folds, in this process or together with others."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavoxel.distributed.group import Group, is_member, joined_group, local_device
from megavoxel.distributed.launch import gpus_here, nodes_of_step, start_group
from megavoxel.errors import UserError
from megavoxel.files import scratch_directory
from megavoxel.inference.disagreement import Voices, new_disagreement, taken_off
from megavoxel.inference.joint import JointNetwork, dismiss, serve
from megavoxel.inference.kernels import kernels_of_windows
from megavoxel.inference.logits import Logits, header_of, hold_logits, write_label_map, write_logits
from megavoxel.inference.run_times import NetworkOfRunTime, run_time_of
from megavoxel.inference.sliding_window import Predictor, Slab, finite, predict_slabs
from megavoxel.inference.staged import StagedNetwork
from megavoxel.inference.tiled import TiledNetwork
from megavoxel.inference.turns import HOST, TilesInTurn
from megavoxel.network.cpu_layers import has_cpu_layers, predict_on_cpu
from megavoxel.network.device import Precision, choose_device, set_threads
from megavoxel.network.host_memory import return_large_tensors
from megavoxel.network.kernels import Kernels
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import fill_network, load_weights, precision_of
from megavoxel.planning.patch import check_window, has_turns, on_one_device, predicting_devices, prediction_window
from megavoxel.planning.plan import Plan
from megavoxel.planning.tile_checks import check_turns
from megavoxel.preprocessing.store import CaseProperties


class CasePredictor:
    """The networks of a setting, ready to label cases.

    Args:
        plan: the setting.
        networks: with their weights, on the CPU; their logits are averaged.
        precision: in which they were trained.
        device: where they run.
        group: several processes that run each network together; None: this one runs them alone. The first of them
            predicts, the others `serve`.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Iterable[SegmentationNetwork | NetworkOfRunTime],
        precision: str,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        check_window(plan)  # a plan from elsewhere may be none that a planner has made
        check_turns(plan, plan.parallel)
        self.plan = plan
        self.device = device
        self.group = group or Group(device=device)
        alone = self.group.size == 1 and not has_turns(plan)
        self.windows_on = HOST if has_turns(plan) else device
        """Where windows and the sums of their logits lie."""
        self.precision = usable_precision(precision, device)
        arriving = iter(networks)
        first = next(arriving)
        wanted = plan.inference.cpu_layers and device.type == "cpu" and not isinstance(first, NetworkOfRunTime)
        self.has_cpu_layers = wanted and alone and has_cpu_layers()
        self.kernels = self._chosen_kernels(first, alone=alone)
        self.kernels.use(device)
        self.memory_format = self.kernels.memory_format
        self.networks = [self._placed(number, network) for number, network in enumerate(chain([first], arriving))]

    @classmethod
    def from_files(
        cls, plan: Plan, weights: Sequence[Path], device: torch.device, group: Group | None = None
    ) -> CasePredictor:
        """A predictor of the networks whose weights are in files, `model.pt` of one or several folds, or of networks
        that another program runs.

        Raises:
            UserError: weights are missing, damaged, or of another plan.
        """
        if run_time_of(weights[0]):
            threads = torch.get_num_threads()
            return cls(plan, (NetworkOfRunTime(plan, path, threads) for path in weights), "float32", device)
        contents = [load_weights(path, plan_hash=plan.hash) for path in weights]
        precision = precision_of(contents[0], weights[0])
        networks = (filled_network(plan, path, content) for path, content in zip(weights, contents, strict=True))
        return cls(plan, networks, precision, device, group)

    def slabs(
        self, image, scratch: Path | None = None, *, name: str = "the image", disagreement: bool = False
    ) -> Iterator[Slab]:
        """Mean logits of a preprocessed image (channels, network grid); `scratch` as for `predict_slabs`.

        With `disagreement`, that of the networks follows the logits as one more output. It is averaged over windows and
        their mirror images as logits are.

        Raises:
            UserError: some are NaN or infinite; says so of `name`.
        """
        inference = self.plan.inference
        slabs = predict_slabs(
            self._predictor(disagreement=disagreement),
            image,
            patch=prediction_window(self.plan, image.shape[1:]),
            step=inference.step,
            sigma=inference.gaussian_sigma,
            weights=inference.weights,
            mirror_axes=self.plan.augmentation.mirror_axes if inference.mirror else (),
            device=self.windows_on,
            classes=self.plan.network.classes + disagreement,
            scratch=scratch,
        )
        return map(partial(finite, name=name), slabs)

    def write(self, image, properties: CaseProperties, output: Path, logits_folder: Path | None = None) -> None:
        """Writes the label map of a preprocessed image as `output/CASE.nii.gz` on the case's own grid.

        Args:
            image: (channels, network grid).
            logits_folder: where the logits are kept; None: they are removed.

        Raises:
            UserError: some logits are NaN or infinite; names the case.
        """
        with scratch_directory(output) as scratch:
            logits = self.logits(image, properties, logits_folder, scratch)
            write_label_map(output, logits.header, logits.slabs())

    def logits(
        self, image, properties: CaseProperties, folder: Path | None, scratch: Path, *, disagreement: bool = False
    ) -> Logits:
        """The logits of a preprocessed image (channels, network grid).

        Args:
            folder: where they are kept; None: in memory if they are small, otherwise in `scratch`.
            scratch: a folder for what is not to stay.
            disagreement: whether that of the networks is told as well; it lies in `scratch`.

        Raises:
            UserError: some are NaN or infinite; names the case.
        """
        header = header_of(properties, self.plan.preprocessing, self.plan.inference.logits_order)
        slabs = self.slabs(image, scratch, name=f"case {properties.case}", disagreement=disagreement)
        kept = new_disagreement(header, scratch) if disagreement else None
        if kept is not None:
            slabs = taken_off(slabs, kept)
        if folder is None and header.is_small:
            return replace(hold_logits(header, slabs), disagreement=kept)
        return replace(write_logits(folder or scratch, header, slabs), disagreement=kept)

    def _predictor(self, *, disagreement: bool) -> Predictor:
        overlapping = self.plan.preprocessing.regions is not None

        @torch.inference_mode()
        def predict(window: Tensor) -> Tensor:
            window = window.contiguous(memory_format=self.memory_format)
            voices = Voices(overlapping=overlapping) if disagreement else None
            with self.precision.autocast(self.device):
                logits = _heard(self.networks[0](window)[0].float(), voices)
                for network in self.networks[1:]:
                    logits += _heard(network(window)[0], voices)
            logits.div_(len(self.networks))
            return logits if voices is None else torch.cat([logits, voices.disagreement()], dim=1)

        return predict

    def _chosen_kernels(self, network: SegmentationNetwork, *, alone: bool) -> Kernels:
        if self.device.type == "cpu":
            layout = "channels_last" if self.has_cpu_layers else "channels_first"
            return Kernels(memory_layout=layout, reason="the default on a processor")
        return kernels_of_windows(self.plan, network, self.device, self.precision, alone=alone)

    def _placed(
        self, number: int, network: SegmentationNetwork | NetworkOfRunTime
    ) -> SegmentationNetwork | NetworkOfRunTime | JointNetwork | TilesInTurn:
        """A network on the device; where several processes run it, this one's part of it."""
        if isinstance(network, NetworkOfRunTime):
            return network
        placed: SegmentationNetwork | JointNetwork | TilesInTurn = network.eval()
        if has_turns(self.plan):
            placed = TilesInTurn(
                network, plan=self.plan, device=self.device, precision=self.precision, memory_format=self.memory_format
            )
        elif self.group.size > 1:
            kind = TiledNetwork if self.plan.parallel.tiles > 1 else StagedNetwork
            placed = kind(
                network, number, plan=self.plan, group=self.group, precision=self.precision,
                memory_format=self.memory_format,
            )  # fmt: skip
        network.to(self.device, memory_format=self.memory_format)
        if self.has_cpu_layers:
            predict_on_cpu(network, self.precision.dtype)
        return placed


def _heard(logits: Tensor, voices: Voices | None) -> Tensor:
    if voices is not None:
        voices.add(logits.float())
    return logits


def filled_network(plan: Plan, path: Path, content: dict[str, Any]) -> SegmentationNetwork:
    """The network of a plan with the weights that `load_weights` has read from a file.

    Raises:
        UserError: they are those of another network.
    """
    with torch.device("meta"):  # a plan may claim a network that no memory holds; its weights are compared first
        network = SegmentationNetwork(plan.network)
    fill_network(network, content["weights"], path)
    return network


def require_weights(plan: Plan, weights: Sequence[Path]) -> None:
    """Refuses weights of which there can be no predictor.

    Raises:
        UserError: weights are missing, damaged, or of another plan.
    """
    for path in weights:
        if run_time_of(path):
            NetworkOfRunTime(plan, path, 1)
        else:
            filled_network(plan, path, load_weights(path, plan_hash=plan.hash))


def usable_precision(name: str, device: torch.device) -> Precision:
    """The precision that a network was trained in, or float32 where the device does not have it."""
    if name == "float16" and device.type == "cpu":
        return Precision(name="float32", reason="trained in float16, which the CPU has not")
    return Precision(name=name, reason="as in training")


PATIENCE = timedelta(hours=2)
"""How long the other processes wait for a window, while the first process reads and writes images."""


@contextmanager
def open_predictor(
    plan: Plan, weights: Sequence[Path], stage: str, arguments: argparse.Namespace
) -> Iterator[CasePredictor | None]:
    """Opens the predictor; gives None in all processes but the first, after they have served it.

    A plan whose windows go over several devices has this process replaced by `torchrun` first. On a machine with fewer
    GPUs this process predicts alone, to the same result if it has the memory.

    Args:
        arguments: its options, with `device` and `threads`.

    Raises:
        UserError: the nodes of a job have too few devices, or the weights are missing, damaged or of another plan.
    """
    if run_time_of(weights[0]):
        plan = on_one_device(plan)
    count = predicting_devices(plan)
    if count > 1 and not is_member():
        seen = gpus_here(arguments.device)
        if seen is None or seen >= count or nodes_of_step(os.environ) > 1:
            start_group(stage, arguments, processes=count, setting=plan.setting)
        print(f"note: the plan predicts on {count} devices, PyTorch sees {seen} GPU here; it takes all", flush=True)
        plan, count = on_one_device(plan), 1
    set_threads(arguments.threads)
    device = choose_device(local_device(arguments.device))
    if device.type == "cpu":
        return_large_tensors()
    if count == 1:
        predictor = CasePredictor.from_files(plan, weights, device)
        if device.type == "cuda":
            print(f"layout of windows: {predictor.kernels.memory_layout} ({predictor.kernels.reason})", flush=True)
        yield predictor
        return
    with joined_group(device, PATIENCE) as group:
        if group.size != count:
            raise UserError(
                f"setting {plan.setting}: the plan predicts with {count} processes, {group.size} were started; "
                f"start 'megavoxel {stage}' once, it starts the others itself"
            )
        predictor = CasePredictor.from_files(plan, weights, device, group)
        if not group.leads:
            serve(predictor.networks, group)
            yield None
            return
        yield predictor
        dismiss(group)
