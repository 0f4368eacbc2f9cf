"""Trained folders of nnU-Net as models of ours: the same label maps, and what is not imported is refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from helpers import RESIDUAL, tiny_plan, woken
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.models.directory import load_model
from megavoxel.models.nnunet import Request, frame_of, import_model
from megavoxel.network.segmentation import SegmentationNetwork
from nnunet_files import checkpoint, saved, trained_folder

FLAT = {"kernels": ((1, 3, 3),) * 3, "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2))}
NETWORKS = {"plain": {}, "residual": RESIDUAL, "slices": FLAT, "regions": {}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
"""What dataset.json says where the three outputs are of regions."""


def network_of(kind: str = "plain", **changes) -> SegmentationNetwork:
    """A network whose logits differ from voxel to voxel, as after a training."""
    plan = replace(tiny_plan().network, **{**NETWORKS[kind], **changes})
    network = woken(SegmentationNetwork(plan, seed=2))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
    network.eval()
    with torch.no_grad():
        logits = network(torch.randn(1, plan.channels, 24, 24, 24, generator=generator))[0]
        network.program.blocks["head0"].module.bias -= logits.mean(dim=(0, 2, 3, 4))  # no class is ahead
    return network


def scan(
    path: Path, shape: tuple[int, ...], *, spacing=(1.0, 1.0, 1.0), axes: str = "RAS", seed: int = 0
) -> np.ndarray:
    """A file of smooth noise whose axes i, j, k run to `axes`; returns its voxels (i, j, k)."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(1, 1, *(-(-size // 3) for size in shape))))
    voxels = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy().astype(np.float32)
    turn = np.linalg.inv(inv_ornt_aff(axcodes2ornt(axes), (1, 1, 1)))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels


def predicted(model: Path, scans: Path, output: Path) -> None:
    assert (
        main(["predict", "--model", str(model), "--input", str(scans), "--output", str(output), "--device", "cpu"]) == 0
    )


@pytest.mark.parametrize(
    ("axes", "order", "kind"),
    [
        ("RAS", (0, 1, 2), "plain"),
        ("LPS", (0, 1, 2), "residual"),
        ("PIR", (1, 0, 2), "plain"),
        ("LPS", (2, 0, 1), "slices"),
    ],
)
def test_the_network_sees_a_scan_as_nnunet_has_read_it(tmp_path, axes, order, kind):
    network = network_of(kind)
    folder = trained_folder(tmp_path, network, plans={"transpose_forward": order})
    path = folder / "fold_0/checkpoint_final.pth"
    saved(path, checkpoint(network, inference_allowed_mirroring_axes=None))
    import_model(Request(folder=folder, orientation=axes), tmp_path / "model")
    voxels = scan(tmp_path / "scans/a.nii.gz", (16, 16, 16), axes=axes)
    predicted(tmp_path / "model", tmp_path / "scans", tmp_path / "out")
    # nnU-Net's array is (k, j, i), whatever the axes of the file stand for.
    seen = voxels.transpose(2, 1, 0).transpose(order)
    seen = torch.from_numpy(((seen - seen.mean()) / seen.std()).copy())
    with torch.no_grad():
        parts = seen[:, None, None] if kind == "slices" else seen[None, None]
        labels = network(parts)[0].argmax(dim=1).squeeze().numpy()
    expected = labels.transpose(np.argsort(order)).transpose(2, 1, 0)
    found = np.asanyarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj)
    assert len(np.unique(expected)) == 3
    assert (found == expected).mean() >= 0.999  # bar ties, which logits in float16 decide


@pytest.mark.parametrize(
    ("spacing", "scheme", "kind"),
    [
        ((1.0, 1.0, 1.0), "ZScore", "residual"),
        ((0.8, 1.3, 1.1), "CT", "plain"),
        ((0.7, 0.7, 3.0), "RescaleTo01", "residual"),
        ((1.0, 1.0, 1.0), "No", "plain"),
        ((0.8, 1.3, 1.1), "ZScore", "slices"),
        ((0.8, 1.3, 1.1), "ZScore", "regions"),
    ],
)
def test_label_maps_are_those_of_the_predictor_of_nnunet(tmp_path, monkeypatch, kind, spacing, scheme):
    predictors = pytest.importorskip("nnunetv2.inference.predict_from_raw_data", reason="the peer is not installed")
    monkeypatch.setenv("nnUNet_compile", "f")
    described = REGIONS if kind == "regions" else {}
    keys = {"normalization_schemes": [f"{scheme}Normalization"]}
    folder = trained_folder(tmp_path, network_of(kind), keys=keys, described=described)
    for number, shape in enumerate([(23, 30, 17), (12, 33, 20)]):
        scan(tmp_path / f"scans/case{number}_0000.nii.gz", shape, spacing=spacing, axes="LPS", seed=number)
    import_model(Request(folder=folder, orientation="LPS"), tmp_path / "model")
    predicted(tmp_path / "model", tmp_path / "scans", tmp_path / "ours")
    predictor = predictors.nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    (tmp_path / "theirs").mkdir()
    # In float16 nothing is left of its weights and sums at the corners of a window, where random logits are close.
    monkeypatch.setattr(torch, "half", torch.float32)
    weights = partial(predictors.compute_gaussian, dtype=torch.float32)
    weights.cache_clear = predictors.compute_gaussian.cache_clear
    monkeypatch.setattr(predictors, "compute_gaussian", weights)
    predictor.predict_from_files_sequential(str(tmp_path / "scans"), str(tmp_path / "theirs"))
    equal = []
    for path in sorted((tmp_path / "theirs").glob("*.nii.gz")):
        theirs, ours = (np.asanyarray(nibabel.load(file).dataobj) for file in (path, tmp_path / "ours" / path.name))
        assert len(np.unique(theirs)) == (4 if kind == "regions" else 3)
        equal.append((theirs == ours).ravel())
    assert len(equal) == 2
    # Our logits are kept in float16, and random ones are close in more voxels than those of a trained network.
    assert np.concatenate(equal).mean() >= 0.9995


def test_folds_are_imported_together_and_described(tmp_path, capsys):
    network = network_of()
    folder = trained_folder(tmp_path, network)
    for fold in (1, "all"):
        saved(folder / f"fold_{fold}/checkpoint_final.pth", checkpoint(network))
    scan(folder / "fold_1/validation/a.nii.gz", (4, 4, 4), axes="LAS")
    assert main(["import", "nnunet", str(folder), "--to", str(tmp_path / "model")]) == 0
    assert "Dataset001_Made-3d_fullres, fold 0, 1" in capsys.readouterr().out
    model = load_model(tmp_path / "model")
    assert model.plan.preprocessing.axes == "LAS"
    assert [fold.weights for fold in model.description.folds] == ["fold-0.pt", "fold-1.pt"]
    assert [(fold.training_cases, fold.validation_cases) for fold in model.description.folds] == [(3, 0), (2, 1)]
    card = (tmp_path / "model/README.md").read_text()
    assert "Trained by nnU-Net v2 (nnUNetTrainer, nnUNetPlans, 3d_fullres); brought to this form by megavoxel" in card
    import_model(Request(folder=folder, folds=("all",), orientation="RAS"), tmp_path / "other")
    assert load_model(tmp_path / "other").description.folds[0].fold == "all"


def test_plans_of_before_say_the_same_network(tmp_path):
    network = network_of()
    keys = {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
        "pool_op_kernel_sizes": network.plan.strides, "conv_kernel_sizes": network.plan.kernels,
    }  # fmt: skip
    folder = trained_folder(tmp_path, network, keys=keys)
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"]["architecture"]
    (folder / "plans.json").write_text(json.dumps(plans))
    import_model(Request(folder=folder, orientation="RAS"), tmp_path / "model")
    assert load_model(tmp_path / "model").plan.network == replace(network.plan, deep_supervision=True)


def test_the_low_resolution_is_imported_by_its_own_keys(tmp_path):
    full = trained_folder(tmp_path, network_of())
    plans = json.loads((full / "plans.json").read_text())
    own = {**plans["configurations"]["3d_fullres"], "spacing": [2.0, 2.0, 2.0]}
    plans["configurations"] = {"3d_lowres": own, "3d_fullres": {"inherits_from": "3d_lowres", "spacing": [1.0] * 3}}
    (full / "plans.json").write_text(json.dumps(plans))
    low = full.rename(full.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"))
    import_model(Request(folder=low, orientation="RAS"), tmp_path / "model")
    plan = load_model(tmp_path / "model").plan
    assert (plan.setting, plan.preprocessing.spacing) == ("3d_lowres", (2.0, 2.0, 2.0))
    scan(tmp_path / "scans/a.nii.gz", (20, 18, 22))
    predicted(tmp_path / "model", tmp_path / "scans", tmp_path / "out")
    voxels = np.asanyarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj)
    assert (voxels.shape, np.unique(voxels).tolist()) == ((20, 18, 22), [0, 1, 2])


@pytest.mark.parametrize(
    ("keys", "plans", "message"),
    [
        ({"previous_stage": "3d_lowres"}, {}, "3d_fullres is the second stage of a cascade, which is not imported"),
        ({"patch_size": [16]}, {}, "3d_fullres is neither in two nor in three dimensions"),
        (
            {"normalization_schemes": ["OddNormalization"]},
            {},
            "channel MRI has OddNormalization, which is not imported",
        ),
        ({"resampling_fn_data": "resample_torch"}, {}, "resampling_fn_data is resample_torch"),
        ({"preprocessor_name": "Own"}, {}, "preprocessor_name is Own"),
        ({}, {"image_reader_writer": "NaturalImage2DIO"}, "images are read by NaturalImage2DIO"),
        ({"spacing": [1.0, 1.0]}, {}, "preprocessing.spacing"),
        ({"batch_size": None}, {}, "batch"),
        ({"patch_size": 16}, {}, "3d_fullres: not as nnU-Net writes it"),
        ({"resampling_fn_data_kwargs": "none"}, {}, "3d_fullres: not as nnU-Net writes it"),
        ({"inherits_from": "3d_fullres"}, {}, "missing, or it inherits from itself"),
        ({}, {"transpose_forward": [0, 1, 7]}, "3d_fullres: not as nnU-Net writes it"),
        ({"architecture": {"network_class_name": "a.Primus", "arch_kwargs": {}}}, {}, "the network is a.Primus"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, keys, plans, message):
    folder = trained_folder(tmp_path, network_of(), keys=keys, plans=plans)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        import_model(Request(folder=folder, orientation="RAS"), tmp_path / "model")
    assert "plans.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_regions_are_imported_with_their_order_and_an_ignore_label_is_left_out(tmp_path):
    labels = {**REGIONS["labels"], "ignore": 4}
    folder = trained_folder(tmp_path, network_of(), described={**REGIONS, "labels": labels})
    import_model(Request(folder=folder, orientation="RAS"), tmp_path / "model")
    model = load_model(tmp_path / "model")
    found = model.plan.preprocessing.regions
    assert found == model.description.regions
    assert (list(found.values), found.class_order) == (["whole", "core", "enhancing"], (1, 2, 3))
    assert model.plan.preprocessing.ignore_value is None
    scan(tmp_path / "scans/a.nii.gz", (16, 16, 16))
    predicted(tmp_path / "model", tmp_path / "scans", tmp_path / "out")
    voxels = np.asanyarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj)
    assert np.unique(voxels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "the values 1 to 2, found [1, 3]"),
        ({"labels": REGIONS["labels"]}, "'regions_class_order' is missing"),
        ({**REGIONS, "regions_class_order": [1, 2]}, "expected 3 values, one for each of whole, core, enhancing"),
        ({**REGIONS, "regions_class_order": [1, 2, 5]}, "5 is no label of any region"),
        ({**REGIONS, "regions_class_order": 5}, "dataset.json: regions_class_order"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}, "head0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, described, message):
    folder = trained_folder(tmp_path, network_of(), described=described)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        import_model(Request(folder=folder, orientation="RAS"), tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    folder = trained_folder(tmp_path, network_of())
    for other in (network_of(features=(4, 8, 12)), network_of("residual"), network_of(channels=2)):
        saved(folder / "fold_0/checkpoint_final.pth", checkpoint(other))
        with pytest.raises(UserError, match=r"not a network as its plans\.json describes it: "):
            import_model(Request(folder=folder, orientation="RAS"), tmp_path / "model")


def test_the_orientation_of_the_training_images_has_to_be_known(tmp_path):
    folder = trained_folder(tmp_path, network_of())
    with pytest.raises(
        UserError, match=r"there are no label maps in fold_\*/validation that say it; give --orientation"
    ):
        import_model(Request(folder=folder), tmp_path / "model")
    for axes in ("LPS", "RAS"):
        scan(folder / f"fold_0/validation/{axes}.nii.gz", (4, 4, 4), axes=axes)
    with pytest.raises(UserError, match="they run to LPS and RAS in the cases"):
        import_model(Request(folder=folder), tmp_path / "model")
    with pytest.raises(UserError, match="--orientation RAR: expected"):
        import_model(Request(folder=folder, orientation="RAR"), tmp_path / "model")


@pytest.mark.parametrize(
    ("axes", "frame", "turned"), [("RAS", "RAS", (0, 1, 2)), ("LPS", "LPS", (0, 1, 2)), ("PIR", "RPI", (2, 0, 1))]
)
def test_arrays_of_nnunet_have_the_axes_of_files_in_reverse(axes, frame, turned):
    assert frame_of(axes) == (frame, turned)
