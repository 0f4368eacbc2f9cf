"""A case from its files to the network's grid: read, turn, crop, normalise, resample, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from megavoxel.datasets.cases import Case, Cases, naming_case
from megavoxel.errors import UserError
from megavoxel.files import content_hash, scratch_directory, write_text
from megavoxel.parallel import map_cases
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.foreground import count_classes, sample_foreground
from megavoxel.preprocessing.large import (
    check_channels,
    is_large,
    named_scan,
    require_sound_image,
    spool_for,
    store_large_image,
    store_large_labels,
)
from megavoxel.preprocessing.normalise import normalise
from megavoxel.preprocessing.resample import resample_image, resample_labels
from megavoxel.preprocessing.store import (
    CaseProperties,
    begin_case,
    case_properties,
    finish_case,
    image_path,
    made_under,
    open_case,
    save_case,
)
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.masks import bounding_box, crop, fill_holes, nonzero_mask
from megavoxel.volumes.slabs import LARGE_VOXELS
from megavoxel.volumes.volume import Volume, joined_image


def preprocess_image(
    image: np.ndarray, geometry: Geometry, plan: PreprocessingPlan, case_id: str, modality: str | None = None
) -> tuple[np.ndarray, CaseProperties]:
    """Brings a sound image to the network's grid: turned, cropped to its nonzero box, normalised, resampled.

    Args:
        image: float32 (channels, z, y, x) in canonical order; it is left as it is.
        modality: its modality, which a plan with modalities needs.

    Returns:
        float32 (channels, network grid), and the way back.

    Raises:
        UserError: the image has another number of channels than the plan, a modality that the plan does not know, or
            voxels that are not finite or all of one value.
    """
    check_channels(len(image), plan, case_id)
    require_sound_image(image, case_id)
    rules = plan.normalisation_of(case_id, modality)
    turned = image.transpose(0, *(axis + 1 for axis in plan.transpose))
    box = bounding_box(nonzero_mask(turned))
    properties = case_properties(turned.shape[1:], box, geometry, plan, case_id, modality)
    cropped = np.array(crop(turned, properties.box), dtype=np.float32, order="C")
    inside = fill_holes(nonzero_mask(cropped)) if any(rule.inside_nonzero for rule in rules) else None
    normalise(cropped, rules, inside, where=named_scan(case_id))
    array = resample_image(cropped, *_spacings(properties, plan), properties.shape, plan.image_order)
    return array, properties


def preprocess_labels(labels: np.ndarray, properties: CaseProperties, plan: PreprocessingPlan) -> np.ndarray:
    """Brings a label map to the grid that its image has after `preprocess_image`.

    Args:
        labels: (z, y, x) in canonical order, values of the label file.

    Returns:
        Classes (network grid): 0 is background, n the nth label of the plan, and voxels that nobody annotated have the
        `ignored_class` of the plan; uint8, or uint16 where needed.

    Raises:
        UserError: another shape than the image, or a value that the plan does not know.
    """
    turned = labels.transpose(plan.transpose)
    if turned.shape != tuple(properties.full_shape):
        raise UserError(
            f"case {properties.case}: the label map has shape {labels.shape}, its image another one; "
            "run 'megavoxel check' on the dataset"
        )
    classes = np.ascontiguousarray(crop(_to_classes(turned, plan, properties.case), properties.box))
    return resample_labels(classes, *_spacings(properties, plan), properties.shape, plan.label_order)


def _spacings(properties: CaseProperties, plan: PreprocessingPlan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Spacing of a case in its files, and that of its network grid."""
    return properties.spacing, plan.spacing_for(properties.spacing)


def preprocess_case(
    case: Case,
    *,
    cases: Cases,
    plan: PreprocessingPlan,
    folder: Path,
    patch: Sequence[int],
    large_voxels: int = LARGE_VOXELS,
) -> CaseProperties:
    """Preprocesses a case and stores it in `folder`.

    Args:
        patch: voxels per axis of a typical patch, network order; it shapes the chunks on disk and nothing else.
        large_voxels: number of voxels from which on a case goes block by block, without being held in memory.
    """
    volumes = cases.open_images(case)
    if is_large(volumes, large_voxels):
        return _preprocess_large_case(case, volumes, cases=cases, plan=plan, folder=folder, patch=patch)
    array, properties = preprocess_image(joined_image(volumes), volumes[0].geometry, plan, case.id, case.modality)
    classes = None if case.label is None else preprocess_labels(cases.read_labels(case), properties, plan)
    foreground = {}
    if classes is not None:
        foreground = sample_foreground(classes, case.id, plan.ignored_class)
        voxels = count_classes(classes, plan.label_classes)
        properties = replace(properties, class_voxels=tuple(map(int, voxels)))
    save_case(folder, properties, array, classes, foreground, patch)
    return properties


def preprocess_large_image(
    volumes: Sequence[Volume],
    plan: PreprocessingPlan,
    case_id: str,
    modality: str | None,
    folder: Path,
    patch: Sequence[int],
) -> CaseProperties:
    """Does what `preprocess_image` does block by block, and stores the case, without labels, in `folder`.

    Raises:
        UserError: as `preprocess_image`; or a file is damaged, or has voxels that are not finite or all of one value.
    """
    begin_case(folder, case_id)
    with scratch_directory(folder) as scratch:
        spooled = spool_for(volumes, plan, case_id, scratch)
        properties = store_large_image(spooled, plan, case_id, modality, folder=folder, patch=patch, scratch=scratch)
    finish_case(folder, properties, {})
    return properties


def _preprocess_large_case(
    case: Case, volumes: Sequence[Volume], *, cases: Cases, plan: PreprocessingPlan, folder: Path, patch: Sequence[int]
) -> CaseProperties:
    begin_case(folder, case.id)
    foreground = {}
    with (
        scratch_directory(folder) as scratch,
        _removed_after_fault(image_path(folder, case.id)),
    ):
        places = {"folder": Path(folder), "patch": patch, "scratch": scratch}
        spooled = spool_for(volumes, plan, case.id, scratch)
        properties = store_large_image(spooled, plan, case.id, case.modality, **places)
        if case.label is not None:
            to_classes = partial(_to_classes, plan=plan, case_id=case.id)
            labels = cases.open_labels(case)
            properties, foreground = store_large_labels(labels, properties, plan, to_classes, **places)
    finish_case(folder, properties, foreground)
    return properties


@contextmanager
def _removed_after_fault(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def preprocess_cases(
    chosen: Sequence[Case],
    *,
    cases: Cases,
    plan: PreprocessingPlan,
    folder: Path,
    patch: Sequence[int],
    processes: int = 1,
    resume: bool = False,
    checksums: Mapping[str, str] | None = None,
    large_voxels: int = LARGE_VOXELS,
) -> None:
    """Preprocesses and stores several cases, with one line for each.

    Args:
        chosen: some of `cases`.
        patch: as for `preprocess_case`.
        processes: cases that are worked on at once; the result does not depend on it.
        resume: whether a case that is stored whole, and was made under the same plan and modality, is kept.
        checksums: SHA-256 by file of the dataset: with `resume`, a case is kept only if it was made of the same files;
            None: that is not looked at.
        large_voxels: as for `preprocess_case`.

    Raises:
        UserError: a case that cannot be preprocessed; it is named.
    """
    work = partial(
        preprocess_case, cases=cases, plan=plan, folder=Path(folder), patch=tuple(patch), large_voxels=large_voxels
    )
    sources = {} if checksums is None else {case.id: _source_of(case, checksums) for case in chosen}
    missing = [case for case in chosen if not (resume and _is_stored(Path(folder), case, plan, sources.get(case.id)))]
    if len(missing) < len(chosen):
        print(f"{len(chosen) - len(missing)} of {len(chosen)} cases are there already")
    work = partial(_with_source, work, folder=Path(folder), sources=sources)
    map_cases(partial(naming_case, work), missing, processes=processes, title="preprocessing", describe=_describe)


def _source_of(case: Case, checksums: Mapping[str, str]) -> str:
    """What stands for the content of a case's files; empty where not all of their checksums are known."""
    found = []
    for name in [*case.images, *([case.label] if case.label else [])]:
        own = [name] if name in checksums else sorted(file for file in checksums if file.startswith(f"{name}/"))
        found.append([checksums[file] for file in own])
    return content_hash(found) if all(found) else ""


def _with_source(
    work: Callable[[Case], CaseProperties], case: Case, *, folder: Path, sources: Mapping[str, str]
) -> CaseProperties:
    """Preprocesses a case; when it is stored whole, notes beside it of which files it was made."""
    note = folder / f"{case.id}.source"
    note.unlink(missing_ok=True)
    properties = work(case)
    if sources.get(case.id):
        write_text(note, f"{sources[case.id]}\n")
    return properties


def _is_stored(folder: Path, case: Case, plan: PreprocessingPlan, source: str | None) -> bool:
    if not (folder / f"{case.id}.json").is_file():
        return False
    note = folder / f"{case.id}.source"
    if source is not None and not (source and note.is_file() and note.read_text().strip() == source):
        return False
    try:
        stored = open_case(folder, case.id)
    except UserError as fault:
        print(f"{fault}: it is made anew", flush=True)
        return False
    return stored.properties.plan == made_under(plan, case.modality) and (stored.labels is None) == (case.label is None)


def _describe(case: Case, properties: CaseProperties) -> str:
    steps = [properties.full_shape, properties.cropped_shape, properties.shape]
    full, cropped, resampled = (" x ".join(map(str, shape)) for shape in steps)
    return f"{case.id}: {full} cropped to {cropped}, resampled to {resampled}"


def _to_classes(labels: np.ndarray, plan: PreprocessingPlan, case_id: str) -> np.ndarray:
    ignored = [] if plan.ignore_value is None else [plan.ignore_value]
    values = [0, *plan.labels.values(), *ignored]
    table = np.zeros(2**16, dtype=np.uint8 if len(values) <= 256 else np.uint16)
    table[values] = np.arange(len(values))
    known = np.isin(np.arange(2**16), [*values, *plan.background_values])
    sound = known[labels]
    if not sound.all():
        allowed = ", ".join(f"{value} ({name})" for name, value in plan.labels.items())
        raise UserError(
            f"case {case_id}: the label map holds {labels[~sound][0]}; the plan knows 0 and {allowed}; "
            "mend the label map or declare the value in the dataset file"
        )
    return table[labels]
