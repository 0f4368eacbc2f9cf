"""Plans and preprocessed arrays against nnU-Net's own: on real datasets, and plans on random fingerprints as well."""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, larger_is_better, peer
from benchmarks.nnunet import REORIENTING_READER, Made, Peer, data_folder
from megavoxel.config.dataset import Dataset
from megavoxel.config.setting import Network, Preprocessing, Setting
from megavoxel.config.source import Source
from megavoxel.datasets.cases import Case, Cases
from megavoxel.datasets.check import check_layout
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities, measure
from megavoxel.planning.patch import REFERENCE_MEMORY_GIB
from megavoxel.planning.plan import Plan, PreprocessingPlan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.preprocessing.case import preprocess_image, preprocess_labels

DATASETS = {"hippocampus": "MRI", "chaos_mr_t2": "MRI", "openkbp_headneck": "CT"}
"""Folders of real data, and the name of their channel."""
CASES_COMPARED = 8
"""Cases per dataset whose arrays are compared."""
LARGEST_TOLERANCE = 1e-3
"""Bound of the largest difference of normalised intensities, in standard deviations."""
TYPICAL_TOLERANCE = 1e-4
"""Bound of the 99.9 % quantile of that difference."""
STATISTICS_TOLERANCE = 5e-3
"""Bound of the difference to nnU-Net's statistics of CT, which come from random draws; ours are those of all voxels."""
LABEL_TOLERANCE = 1e-4
"""Bound of the share of foreground voxels with another label."""
RANDOM_DATASETS = {REFERENCE_MEMORY_GIB: 40, 24.0: 20}
"""Random datasets per memory in GiB that is planned for."""
SLICES = "2d"
"""nnU-Net's name of its plan of slices."""
RANDOM_PRESETS = {"M": 8.0, "L": 24.0, "XL": 40.0}
"""Memory in GiB of nnU-Net's presets of residual encoders."""
OF_A_PRESET = 20
"""Random datasets that are planned with each."""
SMALLEST, LARGEST = 40.0, 1200.0
"""Voxels per axis of the typical case of a random dataset."""
INTENSITIES = Intensities(
    mean=0.0, median=0.0, std=1.0, minimum=-1.0, maximum=1.0, percentile_0_5=-1.0, percentile_99_5=1.0
)


def run() -> list[Row]:
    """Rows of equal plans first, then rows of differences of arrays."""
    plans, arrays = [], []
    for name, channel in DATASETS.items():
        with tempfile.TemporaryDirectory() as folder:
            home = Peer(home=Path(folder), reader=REORIENTING_READER)
            home.link(data_folder() / name, channel)
            theirs, cases = home.plan(), sound_cases(name)
            fingerprint = measure(cases)
            plan, slices = planned(cases, fingerprint), planned(cases, fingerprint, dimensions=2)
            plans += [real_plan(name, plan, theirs, "3d_fullres"), real_plan(name, slices, theirs, SLICES)]
            arrays += compare_arrays(name, home, cases, plan.preprocessing, theirs)
            arrays += compare_arrays(name, home, cases, slices.preprocessing, theirs)
    return [*plans, *random_plans(), *random_presets(), *arrays]


def sound_cases(name: str) -> Cases:
    """The cases of a folder of real data, after the same checks as in the workflow."""
    root = data_folder() / name
    layout = read_layout(root, Dataset(name=name, source=Source(folder=str(root))))
    faults = [finding for finding in check_layout(root, layout) if finding.severity == "error"]
    if faults:
        raise RuntimeError(f"{root}: {faults[0]}")
    tolerances = dict.fromkeys(layout.labels, 1.0)
    return Cases(
        dataset=name,
        root=str(root),
        channels=layout.channels,
        labels=layout.labels,
        nsd_tolerance_mm=tolerances,
        cases=layout.cases,
    )


def planned(
    cases: Cases,
    fingerprint: Fingerprint,
    *,
    memory_gib: float = 8.0,
    preset: str | None = None,
    **keys: Any,
) -> Plan:
    """Our plan, with everything left to the planner but keys of the preprocessing; with a preset, of residual
    encoders."""
    keys = Preprocessing(**keys)
    network = Network() if preset is None else Network(architecture="residual", preset=preset)
    setting = Setting(name="peer", memory_gib=memory_gib, preprocessing=keys, network=network)
    return plan_setting(cases, plan_preprocessing(cases, fingerprint, keys), setting, study="peer", seed=1)


def our_fields(plan: Plan) -> dict[str, Any]:
    """Values of our plan, under nnU-Net's names."""
    preprocessing, network = plan.preprocessing, plan.network
    first = 3 - preprocessing.dimensions
    blocks = {"n_blocks_per_stage": network.blocks} if network.blocks else {}
    return blocks | {
        "transpose_forward": preprocessing.transpose,
        "spacing": preprocessing.spacing[first:],
        "median_image_size_in_voxels": preprocessing.median_shape[first:],
        "normalization_schemes": [rule.scheme for rule in preprocessing.normalisation],
        "use_mask_for_norm": [rule.inside_nonzero for rule in preprocessing.normalisation],
        "patch_size": plan.patch[first:],
        "batch_size": plan.batch,
        "strides": [strides[first:] for strides in network.strides],
        "kernel_sizes": [kernel[first:] for kernel in network.kernels],
        "features_per_stage": network.features,
        "batch_dice": plan.training.batch_dice,
    }


def their_fields(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Values of nnU-Net's plans, under the same names."""
    schemes = {"CTNormalization": "ct", "ZScoreNormalization": "z-score"}
    content = plans["configurations"][configuration]
    fields = {**content, **content["architecture"]["arch_kwargs"], "transpose_forward": plans["transpose_forward"]}
    fields["normalization_schemes"] = [schemes[name] for name in content["normalization_schemes"]]
    return fields


def differences(plan: Plan, theirs: dict[str, Any], configuration: str) -> list[str]:
    """The fields in which our plan is not nnU-Net's, with both values."""
    ours, other = our_fields(plan), their_fields(theirs, configuration)
    return [f"{key}: {value}, nnU-Net: {other[key]}" for key, value in ours.items() if not same(value, other[key])]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a plan are equal; numbers to six digits, as headers hold single precision."""
    if np.shape(ours) != np.shape(theirs):
        return False
    if np.asarray(ours).dtype.kind == "f":
        return bool(np.allclose(ours, theirs, rtol=1e-6, atol=0))
    return bool(np.array_equal(ours, theirs))


def real_plan(name: str, plan: Plan, theirs: dict[str, Any], configuration: str) -> Row:
    """The number of equal fields in the plans of a real dataset; none of the three has a low-resolution stage."""
    found = differences(plan, theirs, configuration)
    for text in found:
        print(f"{name}: {text}")
    total = len(our_fields(plan))
    what = "plan of slices" if configuration == SLICES else "plan"
    title = f"{what} of {name}: fields equal to nnU-Net's"
    return larger_is_better(title, peer("nnunetv2"), float(total - len(found)), float(total), "fields")


def random_plans() -> list[Row]:
    """The number of random datasets with equal plans, at full resolution, and at low resolution if one of us has it.

    Our low-resolution stage is always planned for 8 GiB, so that it is compared where nnU-Net plans for that, too.
    """
    random = np.random.default_rng(0)
    datasets = [random_dataset(random, memory) for memory, count in RANDOM_DATASETS.items() for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        theirs = Peer(home=Path(folder)).plan_made(datasets)
    ours, low = [our_plans(made) for made in datasets], RANDOM_DATASETS[REFERENCE_MEMORY_GIB]
    return [
        equal_plans("plans of random datasets", ours, theirs, "3d_fullres"),
        equal_plans("low-resolution plans of random datasets", ours[:low], theirs[:low], "3d_lowres"),
        equal_plans("plans of slices of random datasets", ours, theirs, SLICES),
    ]


def random_presets() -> list[Row]:
    """The number of random datasets with equal plans of nnU-Net's presets of residual encoders."""
    random = np.random.default_rng(1)
    presets = [item for item in RANDOM_PRESETS.items() for _ in range(OF_A_PRESET)]
    datasets = [replace(random_dataset(random, memory), preset=preset) for preset, memory in presets]
    with tempfile.TemporaryDirectory() as folder:
        theirs = Peer(home=Path(folder)).plan_made(datasets)
    ours = [our_plans(made) for made in datasets]
    by = "by the presets of residual encoders"
    return [
        equal_plans(f"plans of random datasets {by}", ours, theirs, "3d_fullres"),
        equal_plans(f"plans of slices of random datasets {by}", ours, theirs, SLICES),
    ]


def equal_plans(title: str, ours: list[dict[str, Plan]], theirs: list[dict[str, Any]], configuration: str) -> Row:
    """The number of equal plans, among datasets for which one of us has the configuration."""
    equal = []
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        present = configuration in mine, configuration in other["configurations"]
        if any(present):
            found = differences(mine[configuration], other, configuration) if all(present) else ["one of us has none"]
            for text in found:
                print(f"random dataset {number}, {configuration}: {text}")
            equal.append(not found)
    count = float(sum(equal)), float(len(equal))
    return larger_is_better(f"{title}: equal to nnU-Net's", peer("nnunetv2"), *count, "plans")


def our_plans(made: Made) -> dict[str, Plan]:
    """Our plans of a dataset under nnU-Net's names."""
    cases = tuple(Case(id=f"c{number:03}", images=("none.nii.gz",)) for number in range(len(made.shapes)))
    dataset = Cases(
        dataset="made", root="none", channels=("MRI",), labels=made.labels, nsd_tolerance_mm={}, cases=cases
    )
    shapes = [
        CaseFingerprint(id=case.id, spacing=tuple(spacing), shape=tuple(shape), cropped_shape=tuple(shape))
        for case, spacing, shape in zip(cases, made.spacings.tolist(), made.shapes.tolist(), strict=True)
    ]
    found = Fingerprint(dataset="made", channels=("MRI",), cases=tuple(shapes), intensities=(INTENSITIES,))
    keys = {"memory_gib": made.memory_gib, "preset": made.preset}
    plans = {"3d_fullres": planned(dataset, found, **keys), SLICES: planned(dataset, found, dimensions=2, **keys)}
    with contextlib.suppress(UserError):  # there is no low-resolution stage
        plans["3d_lowres"] = planned(dataset, found, memory_gib=made.memory_gib, resolution="low")
    return plans


def random_dataset(random: np.random.Generator, memory_gib: float) -> Made:
    """Cases of 8 voxels and more per axis; a third of the datasets is isotropic, another third has a coarse axis."""
    cases = int(random.integers(5, 200))
    size = np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST), size=3))
    spacing = np.exp(random.uniform(np.log(0.4), np.log(3), size=3))
    if random.random() < 1 / 3:
        spacing[:] = spacing[0]
    elif random.random() < 1 / 2:
        coarse = random.integers(3)
        spacing[coarse] *= 4
        size[coarse] /= 4
    spacings = spacing * np.exp(random.normal(scale=0.1, size=(cases, 1)))
    shapes = np.maximum(8, size * np.exp(random.normal(scale=0.15, size=(cases, 3)))).astype(int)
    labels = {f"label-{value}": value for value in range(1, int(random.integers(2, 16)))}
    return Made(spacings=spacings.round(4), shapes=shapes, labels=labels, memory_gib=memory_gib)


def compare_arrays(name: str, home: Peer, cases: Cases, plan: PreprocessingPlan, plans: dict[str, Any]) -> list[Row]:
    """Differences of the preprocessed arrays of the first cases, each beside its tolerance.

    nnU-Net reads with its reader that turns images to RAS. With its usual one, mirrored files have their exact ties of
    nearest neighbours decided the other way: 1.8 % of the label voxels of openkbp_headneck, in middle slices.

    nnU-Net takes the statistics of CT from voxels that it draws; they are compared on their own, and its own values go
    into our plan before arrays are made.
    """
    chosen = cases.of_split("training")[:CASES_COMPARED]
    configuration = SLICES if plan.dimensions == 2 else "3d_fullres"
    theirs = home.arrays(configuration, [case.id for case in chosen])
    plan, statistics = with_their_statistics(name, plan, plans)
    differences, changed, foreground = [], 0, 0
    for case in chosen:
        image, labels = our_arrays(cases, case, plan)
        differences.append(np.abs(image - theirs[case.id][0]).ravel())
        changed += np.count_nonzero(labels != theirs[case.id][1])
        foreground += np.count_nonzero(theirs[case.id][1])
    slices = " in slices" if plan.dimensions == 2 else ""
    every, title = np.concatenate(differences), f"{len(chosen)} preprocessed cases of {name}{slices}"
    quantile, unit = float(np.quantile(every, 0.999)), "standard deviations"
    return [
        *(statistics if plan.dimensions == 3 else []),  # those of slices are the same
        within(f"{title}: largest difference", float(every.max()), LARGEST_TOLERANCE, unit),
        within(f"{title}: 99.9 % quantile of differences", quantile, TYPICAL_TOLERANCE, unit),
        within(f"{title}: voxels with another label", changed / foreground, LABEL_TOLERANCE, "of the foreground"),
    ]


def with_their_statistics(
    name: str, plan: PreprocessingPlan, plans: dict[str, Any]
) -> tuple[PreprocessingPlan, list[Row]]:
    """Our plan with nnU-Net's statistics of CT, and how far ours are from them; z-scores need none."""
    rule = plan.normalisation[0]
    if rule.scheme != "ct":
        return plan, []
    found = plans["foreground_intensity_properties_per_channel"]["0"]
    names = {"mean": "mean", "std": "std", "lower": "percentile_00_5", "upper": "percentile_99_5"}
    theirs = {key: found[name] for key, name in names.items()}
    error = max(abs(getattr(rule, key) - value) for key, value in theirs.items()) / theirs["std"]
    title = f"statistics of {name}: largest difference of mean, std and percentiles"
    row = within(title, error, STATISTICS_TOLERANCE, "standard deviations")
    return replace(plan, normalisation=(replace(rule, **theirs),)), [row]


def our_arrays(cases: Cases, case: Case, plan: PreprocessingPlan) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed image and labels on the network's grid."""
    image, geometry = cases.read_image(case)
    array, properties = preprocess_image(image, geometry, plan, case.id)
    return array, preprocess_labels(cases.read_labels(case), properties, plan)


def within(benchmark: str, error: float, tolerance: float, unit: str) -> Row:
    """A row of an error beside its tolerance."""
    ratio = tolerance / error if error else math.inf
    return Row(
        benchmark=benchmark, peer=f"{peer('nnunetv2')}, tolerance", ours=error, theirs=tolerance, ratio=ratio, unit=unit
    )
