"""How intensities are scaled by the names of channels, against nnU-Net's own classes; and absent channels."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dataset_folder import Folder
from dataset_layouts import make_phantoms, nnunet_raw
from helpers import preprocessing_plan
from megavoxel.config.dataset import load_dataset
from megavoxel.config.setting import IntensityRange, Preprocessing
from megavoxel.errors import UserError
from megavoxel.planning.plan import ChannelNormalisation
from megavoxel.planning.planner import plan_preprocessing
from megavoxel.preprocessing.case import preprocess_image
from megavoxel.preprocessing.normalise import normalise
from megavoxel.volumes.grid import Geometry
from new_dataset import init
from scans import fingerprint, unwritten

NAMES = ("CT", "noNorm", "zscore", "rescale_to_0_1", "RGB_to_0_1", "T1")


def planned(names=NAMES, **keys):
    """The plan of a dataset with channels of these names."""
    found = fingerprint([(1, 1, 1)] * 4, [(20, 20, 20)] * 4, channels=names)
    return plan_preprocessing(unwritten(4, channels=names), found, Preprocessing(**keys))


def rule(scheme, **keys):
    return ChannelNormalisation(scheme=scheme, **keys)


def test_names_of_channels_decide_as_in_the_table_of_nnunet():
    schemes = [channel.scheme for channel in planned().normalisation]
    assert schemes == ["ct", "unchanged", "z-score", "rescale-0-1", "rgb-0-1", "z-score"]


def test_every_scheme_gives_the_numbers_of_the_class_that_nnunet_has_for_the_name():
    table = pytest.importorskip(
        "nnunetv2.preprocessing.normalization.map_channel_name_to_normalization", reason="the peer is not installed"
    )
    image = np.random.default_rng(0).uniform(0, 255, size=(5, 6, 7)).astype(np.float32)
    for name, own in zip(NAMES, planned().normalisation, strict=True):
        known = {"mean": own.mean, "std": own.std, "percentile_00_5": own.lower, "percentile_99_5": own.upper}
        scheme = table.get_normalization_scheme(name)(use_mask_for_norm=False, intensityproperties=known)
        np.testing.assert_allclose(normalise(image[None].copy(), [own])[0], scheme.run(image.copy()), atol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "values"),
    [("rescale-0-1", [0, 0.5, 1]), ("rgb-0-1", [0, 0.2, 0.4]), ("unchanged", [0, 51, 102])],
)
def test_three_voxels_by_hand(scheme, values):
    image = np.array([0, 51, 102], dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalise(image, [rule(scheme)]).ravel(), values, rtol=1e-6)


def test_a_study_lists_a_scheme_for_each_channel():
    keys = {"normalisation": ("unchanged", IntensityRange(range=(0.0, 4.0)))}
    plan = planned(("CT", "PET"), **keys)
    assert plan.normalisation == (rule("unchanged"), rule("range", lower=0.0, upper=4.0))
    with pytest.raises(UserError, match=r"lists 2 schemes; dataset .* has 1 channels \(CT\): list one for each"):
        planned(("CT",), **keys)


@pytest.mark.parametrize(("asked", "size", "inside"), [(None, 20, False), (True, 20, True), (False, 10, False)])
def test_z_scores_of_the_nonzero_region_follow_the_size_of_the_crop_or_the_study(asked, size, inside):
    found = fingerprint([(1, 1, 1)] * 4, [(20, 20, size)] * 4, channels=("T1",), full=(20, 20, 20))
    plan = plan_preprocessing(unwritten(4, channels=("T1",)), found, Preprocessing(mask_for_norm=asked))
    assert plan.normalisation == (rule("z-score", inside_nonzero=inside),)


def test_values_beyond_those_of_a_colour_are_refused_where_colours_are_declared():
    image = np.arange(300, dtype=np.float32).reshape(1, 3, 10, 10)
    grid = Geometry(shape=(10, 10, 3), affine=np.eye(4))
    with pytest.raises(
        UserError, match=r"case a: the scan has values from 0 to 299, .* rgb-0-1, .*from 0 to 255; mend"
    ):
        preprocess_image(image, grid, preprocessing_plan(normalisation=(rule("rgb-0-1"),)), "a")


def test_a_case_without_one_of_the_channels_is_named_with_what_to_do(tmp_path, capsys):
    folder = Folder(tmp_path, cases=2)
    folder.content |= {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "one": 1, "two": 2}}
    folder.content["file_ending"] = ".nii.gz"
    del folder.content["modality"]
    folder.content["dataset"] = {}
    for entry in folder.content["training"]:
        case = entry["image"].split("/")[1].removesuffix(".nii.gz")
        names = [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in range(2)]
        folder.content["dataset"][case] = {"images": names, "label": entry["label"]}
        for name in names:
            shutil.copy(folder.data / entry["image"], folder.data / name)
    (folder.data / "imagesTr/case_1_0001.nii.gz").unlink()
    words = "there is no imagesTr/case_1_0001.nii.gz, the channel T2: every case needs all of T1, T2; bring the file"
    folder.finds(capsys, "case_1", "missing-image", words)


def test_init_names_cases_without_a_channel_and_leaves_them_out_when_asked(work, tmp_path, capsys):
    root = nnunet_raw(make_phantoms(tmp_path), tmp_path)
    (root / "imagesTr/phantom_0002_0001.nii.gz").unlink()
    assert init(root) == 1
    said = capsys.readouterr().err
    assert "not there: imagesTr/phantom_0002_0001.nii.gz; every case needs all channels (CT, PET); bring" in said
    assert "--leave-out" in said
    assert init(root, "--leave-out") == 0
    assert load_dataset(work / "config/datasets/new.yaml").exclude == ("phantom_0002",)
