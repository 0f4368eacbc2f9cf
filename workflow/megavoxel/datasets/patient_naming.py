"""Folders per patient, with an image and a mask per label, recognised by the names of their files.

A mask lies in a folder of masks below the patient's (``s0001/segmentations/liver.nii.gz``,
``0522c0001/structures/BrainStem.nrrd``), or beside the image with a word that says what it is
(``P7/mask_liver.mha``). What is left of its name is that of a label.
"""

from __future__ import annotations

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from megavoxel.datasets.naming import IMAGE_WORDS, LABEL_WORDS, without_words, words_of
from megavoxel.datasets.pairs import CASE, listed
from megavoxel.errors import UserError
from megavoxel.volumes.open import stem_of

MASK_FOLDERS = LABEL_WORDS | {"contours", "organs", "roi", "rois", "structure", "structures"}
MOST_SPELLINGS = 8
"""Names of one label's masks above which they are taken to be no masks of labels."""


@dataclass(kw_only=True)
class Home:
    """The volumes of a folder, and of folders of masks below it."""

    images: list[PurePosixPath] = field(default_factory=list)
    masks: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))
    """By what their names call them."""


@dataclass(frozen=True, kw_only=True)
class PatientNames:
    """What images and masks are called."""

    image: str
    """Pattern of the image's file, or DICOM."""
    masks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Patterns of masks below a patient's folder by label, in order of the alphabet."""
    structures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """In place of masks, names of what was drawn in a DICOM series."""
    label_map: str | None = None
    """In place of masks, the pattern of a label map."""
    single: dict[str, str] = field(default_factory=dict)
    """The one patient that has a mask of the label, for labels that no other has."""
    faults: tuple[str, ...] = ()
    """What is wrong with folders, each led by its name."""

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Masks or structures by label; none where there is a label map."""
        return self.masks or self.structures


def guess_patients(names: Sequence[str], *, image: str | None = None) -> PatientNames | None:
    """What images and masks are called in folders of patients; None where there are no such folders.

    Args:
        names: files of volumes below the folder.
        image: the pattern of the image's file, where the user gives it.

    Raises:
        UserError: every patient has several images, so that it is not known which one is meant.
    """
    homes = _homes(map(PurePosixPath, names))
    with_masks = {home: inside for home, inside in homes.items() if inside.images and inside.masks}
    if not with_masks or any(map(_has_label_map, with_masks.items())):
        return None
    if len(homes) == 1 and len(next(iter(homes.values())).images) > 1:
        return None
    spellings = _spellings(homes)
    if max(len(several) for several in spellings.values()) > MOST_SPELLINGS:
        return None
    owners: dict[str, set[str]] = defaultdict(set)
    for home, inside in homes.items():
        for structure in inside.masks:
            owners[plain(structure)].add(home.name)
    if len(homes) > 1 and max(map(len, owners.values())) == 1:
        return None
    pattern = image or _image_pattern(with_masks)
    masks = {label_of(several): _patterns(several) for several in spellings.values()}
    return PatientNames(
        image=pattern,
        masks=dict(sorted(masks.items())),
        single={
            label_of(several): min(owners[plain])
            for plain, several in spellings.items()
            if len(owners[plain]) == 1 and len(homes) > 1
        },
        faults=tuple(_faults(homes, pattern, is_asked=image is not None)),
    )


def _homes(files: Iterable[PurePosixPath]) -> dict[PurePosixPath, Home]:
    """Folders of patients: those in which a mask belongs, and those with an image beside them."""
    homes: dict[PurePosixPath, Home] = defaultdict(Home)
    images = []
    for file in files:
        mask = _mask(file)
        if mask is None:
            images.append(file)
        else:
            homes[mask[0]].masks[mask[1]].append(file.relative_to(mask[0]))
    beside = {home.parent for home in homes}
    for file in images:
        if file.parent in homes or file.parent.parent in beside:
            homes[file.parent].images.append(file)
    return {home: homes[home] for home in sorted(homes) if home.name}


def _mask(file: PurePosixPath) -> tuple[PurePosixPath, str] | None:
    """The patient's folder that a mask belongs in, and what its name calls it; None: the file is no mask."""
    folders = file.parent.parts
    for depth in range(len(folders) - 1, 0, -1):
        words = words_of(folders[depth])
        if words & MASK_FOLDERS and not words & IMAGE_WORDS:
            home = PurePosixPath(*folders[:depth])
            return home, structure_of(file, home.name)
    if len(folders) > 0 and words_of(stem_of(file.name)) & LABEL_WORDS:
        return file.parent, structure_of(file, file.parent.name)
    return None


def structure_of(file: PurePosixPath, patient: str) -> str:
    """What a mask shows, by its name without the patient and words for masks; empty: the name says nothing of it."""
    parts = re.split(r"([-_. ]+)", stem_of(file.name).removeprefix(patient).strip("-_. "))
    while parts and (parts[0].lower() in LABEL_WORDS or not parts[0]):
        parts = parts[2:]
    while parts and parts[-1].lower() in LABEL_WORDS:
        parts = parts[:-2]
    return "".join(parts)


def _has_label_map(item: tuple[PurePosixPath, Home]) -> bool:
    """Whether a folder has a file that is no mask of one label, but the label map of the image."""
    home, inside = item
    stems = [stem_of(image.name) for image in inside.images]
    return bool({"", home.name, *stems, *(without_words(stem)[1] for stem in stems)} & set(inside.masks))


def plain(structure: str) -> str:
    """A name without its capitals and signs, by which two spellings are one."""
    return re.sub(r"[^a-z0-9]+", "-", structure.lower())


def _spellings(homes: dict[PurePosixPath, Home]) -> dict[str, Counter[tuple[str, str]]]:
    """How often a label is written in which way, and in which file below a patient's folder; by its plain name."""
    found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for home, inside in homes.items():
        for structure, files in inside.masks.items():
            for file in files:
                found[plain(structure)][structure, with_case(file.as_posix(), home.name)] += 1
    return found


def with_case(name: str, patient: str) -> str:
    """A pattern for a file's name, in which `{case}` stands for the patient."""
    return glob.escape(name).replace(glob.escape(patient), CASE) if patient else glob.escape(name)


def label_of(spellings: Counter[tuple[str, str]]) -> str:
    """The most common spelling of a label."""
    return max(sorted(spellings), key=lambda spelling: spellings[spelling])[0]


def _patterns(spellings: Counter[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted({pattern for _, pattern in spellings}))


def _image_pattern(homes: dict[PurePosixPath, Home]) -> str:
    """The name that most images have."""
    found = Counter(with_case(image.name, home.name) for home, inside in homes.items() for image in inside.images)
    most = max(found.values())
    common = sorted(pattern for pattern, count in found.items() if count == most)
    if len(common) > 1 and most > 1:
        raise UserError(
            f"several images lie in each patient's folder: {', '.join(common)}; choose one by --image PATTERN"
        )
    return common[0]


def _faults(homes: dict[PurePosixPath, Home], pattern: str, *, is_asked: bool) -> Iterable[str]:
    for home, inside in homes.items():
        named = pattern.replace(CASE, glob.escape(home.name))
        chosen = [image for image in inside.images if fnmatchcase(image.name, named)]
        several = chosen if is_asked else inside.images
        names = listed(image.name for image in several or inside.images)
        if not chosen:
            yield f"{home}: no image '{pattern}', which the others have{f'; it has {names}' if names else ''}"
        elif len(several) > 1:
            yield f"{home}: {len(several)} images ({names}); keep one, or choose by --image PATTERN"
