"""Training step by step beside the parts of nnU-Net's trainer: its network, loss, optimiser and schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import tiny_plan, woken
from megavoxel.distributed.group import Group
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.training.optimizer import build_optimizer, learning_rate, set_rate, trained_weights
from megavoxel.training.run import Run
from megavoxel.training.step import train_step
from nnunet_files import checkpoint, their_name

STEPS, STEPS_OF_EPOCH = 20, 5
NETWORKS = {
    "plain": {},
    "residual": {"architecture": "residual", "convolutions_per_level": 1, "blocks": (1, 2, 2, 2)},
}


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_twenty_steps_are_those_of_the_trainer_of_nnunet(kind, batch_dice):
    """The same weights by name and the same patches without augmentation: loss by loss and weight by weight."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="the peer is not installed")
    losses = pytest.importorskip("nnunetv2.training.loss.compound_losses", reason="the peer is not installed")
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    plan = tiny_plan(training={"epochs": STEPS // STEPS_OF_EPOCH, "batch_dice": batch_dice}, patch=(16, 16, 16))
    shape = {"features": (4, 8, 8, 8), "kernels": ((3, 3, 3),) * 4, "strides": ((1, 1, 1), *((2, 2, 2),) * 3)}
    plan = replace(plan, network=replace(plan.network, **shape, **NETWORKS[kind]))
    network = woken(SegmentationNetwork(plan.network, seed=1))
    keys = {
        "input_channels": 1, "n_stages": 4, "features_per_stage": shape["features"], "conv_op": torch.nn.Conv3d,
        "kernel_sizes": shape["kernels"], "strides": shape["strides"], "num_classes": 3, "conv_bias": True,
        "norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
    }  # fmt: skip
    if kind == "residual":
        theirs = unet.ResidualEncoderUNet(n_blocks_per_stage=(1, 2, 2, 2), n_conv_per_stage_decoder=(1,) * 3, **keys)
    else:
        theirs = unet.PlainConvUNet(n_conv_per_stage=(2,) * 4, n_conv_per_stage_decoder=(2,) * 3, **keys)
    theirs.load_state_dict(checkpoint(network)["network_weights"])
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)
    schedule = PolyLRScheduler(optimizer, 0.01, STEPS // STEPS_OF_EPOCH)
    weights = np.array([1, 0.5, 0]) / 1.5
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = losses.DC_and_CE_loss(
        dice, {}, weight_ce=1, weight_dice=1, ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss
    )
    loss = DeepSupervisionWrapper(loss, weights)
    run = Run(
        plan=plan, device=torch.device("cpu"), precision=Precision(name="float32", reason="test"), network=network,
        optimizer=build_optimizer(trained_weights(network, plan.training), plan.training), group=Group(),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        image = torch.randn(2, 1, 16, 16, 16, generator=generator)
        target = (torch.nn.functional.avg_pool3d(image, 5, 1, 2) * 9).clamp(0, 2).round()
        if step % STEPS_OF_EPOCH == 0:
            schedule.step(step // STEPS_OF_EPOCH)
            set_rate(run.optimizer, learning_rate(step // STEPS_OF_EPOCH, plan.training, plan.batch))
        levels = [torch.nn.functional.interpolate(target, scale_factor=0.5**n, mode="nearest-exact") for n in range(3)]
        optimizer.zero_grad()
        value = loss(theirs(image), levels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 12)
        optimizer.step()
        ours = train_step(run, image, target[:, 0].to(torch.uint8))
        # Their Dice is a gain with a minus, ours a share that is missing.
        torch.testing.assert_close(ours, value.detach() + 1, rtol=1e-4, atol=1e-5)
    found = dict(theirs.named_parameters())
    for name, own in network.named_parameters():
        torch.testing.assert_close(own, found[their_name(name, plan.network)], rtol=1e-3, atol=2e-5)
