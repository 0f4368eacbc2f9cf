"""Patterns that the names of images and label maps follow, guessed from the names.

A file's name is taken apart into the id of its case and what all files of its kind share: the folder
(``images/{case}.nii.gz``), a word before or behind the id (``segmentation-{case}.nii``, ``{case}_seg.nii.gz``), a name
of its own in a folder per case (``{case}/imaging.nii.gz``), or the entities of BIDS
(``sub-*/anat/{case}_T1w.nii.gz``; Gorgolewski et al., Sci. Data 3:160044, 2016).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from megavoxel.config.source import Files
from megavoxel.datasets.pairs import CASE, matching
from megavoxel.errors import UserError
from megavoxel.volumes.open import stem_of

LABEL_WORDS = {
    "annotation", "annotations", "dseg", "groundtruth", "gt", "label", "labels", "labelstr", "lbl", "mask", "masks",
    "seg", "segm", "segmentation", "segmentations", "segs", "truth",
}  # fmt: skip
IMAGE_WORDS = {
    "image", "images", "imagestr", "imaging", "img", "imgs", "raw", "scan", "scans", "vol", "volume", "volumes",
}  # fmt: skip
MODALITY_WORDS = {
    "adc", "bold", "ct", "cta", "dwi", "flair", "inplanet1", "inplanet2", "mr", "mri", "pd", "pdw", "pet", "swi", "t1",
    "t1c", "t1ce", "t1gd", "t1n", "t1w", "t2", "t2f", "t2star", "t2w", "us",
}  # fmt: skip
ROLES = LABEL_WORDS | IMAGE_WORDS
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(_.+)")
CHANNEL = re.compile(r"(.+)_(\d{4})")

Groups = dict[str, set[str]]
"""Ids of cases by pattern."""


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What images and label maps are called."""

    files: Files
    is_bids: bool
    """Whether names follow BIDS."""


def guess_files(names: Sequence[str], *, images: Sequence[str] = (), label: str | None = None) -> Guess:
    """The patterns of images and label maps.

    Args:
        names: files of volumes below the folder.
        images: patterns of the images, one per channel, where the user gives them.
        label: the pattern of the label maps, where the user gives it.

    Raises:
        UserError: no label maps or no images are recognised, or several patterns would do for one of them.
    """
    if label is None:
        label = _guess_label(names, images)
        label = _with_shared_ending(label, names, images)
    cases = matching(names, label)
    if not cases:
        raise UserError(f"--label '{label}' matches no file; the first files are {_some(names)}")
    others = [name for name in names if name not in set(cases.values())]
    patterns = tuple(images) or _guess_images(others, label, set(cases))
    return Guess(files=Files(images=patterns, label=label), is_bids=all(case.startswith("sub-") for case in cases))


def is_label_map(name: str) -> bool:
    """Whether a file is a label map, by the words of its name, or else of the nearest folder that has such a word."""
    path = PurePosixPath(name)
    if words_of(stem_of(path.name)) & LABEL_WORDS:
        return True
    for folder in path.parent.parts[::-1]:
        words = words_of(folder)
        if words & ROLES:
            return bool(words & LABEL_WORDS) and not words & IMAGE_WORDS
    return False


def pattern_of(name: str) -> tuple[str, str]:
    """The pattern that a file's name follows, and the id of its case."""
    path = PurePosixPath(name)
    stem, folders = stem_of(path.name), list(path.parent.parts)
    suffix = path.name.removeprefix(stem)
    subject = SUBJECT.fullmatch(stem)
    if subject:
        general = [re.sub(r"^(sub|ses)-.*", r"\1-*", folder) for folder in folders]
        return "/".join([*general, f"{CASE}{subject[2]}{suffix}"]), subject[1]
    if folders and words_of(stem) <= ROLES | MODALITY_WORDS:
        return "/".join([*folders[:-1], CASE, path.name]), folders[-1]
    rest = stem.removeprefix(folders[-1]) if folders else stem
    if rest != stem and not words_of(folders[-1]) & ROLES and not rest[:1].isalnum():
        return "/".join([*folders[:-1], CASE, f"{CASE}{rest}{suffix}"]), folders[-1]
    before, case, behind = without_words(stem)
    return "/".join([*folders, f"{before}{CASE}{behind}{suffix}"]), case


def _guess_label(names: Sequence[str], images: Sequence[str]) -> str:
    known = {name for pattern in images for name in matching(names, pattern).values()}
    groups = _groups(name for name in names if name not in known and is_label_map(name))
    if not groups:
        raise UserError(
            f"no label maps are recognised among {len(names)} images, such as {_some(names)}; they are told by a "
            "word like label, seg or mask in the name of the file or folder: name them by --label PATTERN, such as "
            "--label 'labels/{case}.nii.gz'"
        )
    if len(groups) > 1:
        raise UserError(f"several patterns would do for the label maps: {_candidates(groups)}; choose one by --label")
    return next(iter(groups))


def _guess_images(names: Sequence[str], label: str, cases: set[str]) -> tuple[str, ...]:
    """The pattern of the images that have these label maps; several for the numbered channels of nnU-Net."""
    images = [name for name in names if not is_label_map(name)]
    groups = _groups(images)
    fitting = {pattern: found for pattern, found in groups.items() if found & cases}
    if not fitting:
        numbered = {pattern: found for pattern, found in _by_channel(groups).items() if found & cases}
        if len({re.sub(r"_\d{4}(?=\.[^/]*$)", "", pattern) for pattern in numbered}) == 1:
            return tuple(sorted(numbered))
        fitting = numbered
    if not fitting:
        fitting = {pattern: found for pattern, found in _without_shared_endings(groups).items() if found & cases}
    if not fitting:
        raise UserError(
            f"no images are found for the {len(cases)} label maps '{label}', such as that of the case "
            f"'{min(cases)}'; the other files are {_some(images) or 'none'}: name the images by --image PATTERN, such "
            "as --image 'images/{case}.nii.gz'"
        )
    if len(fitting) > 1:
        raise UserError(
            f"several patterns would do for the images: {_candidates(fitting)}; choose one by --image, or several, "
            "which become channels in that order if they lie on the same grid"
        )
    return tuple(fitting)


def _with_shared_ending(label: str, names: Sequence[str], images: Sequence[str]) -> str:
    """The pattern of the label maps, with what all of their ids end with where only the rest are ids of images."""
    labels = matching(names, label)
    others = [name for name in names if name not in set(labels.values()) and not is_label_map(name)]
    groups: Groups = {pattern: set(matching(names, pattern)) for pattern in images} or _groups(others)
    known = set().union(*groups.values(), *_by_channel(groups).values(), *_without_shared_endings(groups).values())
    ending = _shared_ending(set(labels))
    shorter = {case.removesuffix(ending) for case in labels}
    return label.replace(CASE, CASE + ending) if shorter & known and not known & set(labels) else label


def _without_shared_endings(groups: Groups) -> Groups:
    """The groups whose ids end alike (`a_venous`, `b_venous`), with the ending in the pattern."""
    endings = {pattern: _shared_ending(cases) for pattern, cases in groups.items()}
    return {
        pattern.replace(CASE, CASE + ending): {case.removesuffix(ending) for case in groups[pattern]}
        for pattern, ending in endings.items()
        if ending
    }


def _shared_ending(cases: set[str]) -> str:
    """What several ids end with, from a separator on; empty: nothing, or it is all of an id."""
    first = min(cases, default="")
    endings = [first[match.start() :] for match in re.finditer(r"[-_. ]", first) if len(cases) > 1]
    return next((end for end in endings if all(case.endswith(end) and case != end for case in cases)), "")


def _groups(names: Iterable[str]) -> Groups:
    groups: Groups = defaultdict(set)
    for name in names:
        pattern, case = pattern_of(name)
        groups[pattern].add(case)
    for pattern in [pattern for pattern in groups if f"{pattern}.gz" in groups]:  # some are compressed
        groups[f"{pattern}*"] = groups.pop(pattern) | groups.pop(f"{pattern}.gz")
    return groups


def _by_channel(groups: Groups) -> Groups:
    """Groups of the files whose ids end in four digits, which are then taken for the number of a channel."""
    found: Groups = defaultdict(set)
    for pattern, cases in groups.items():
        for match in filter(None, map(CHANNEL.fullmatch, cases)):
            found[pattern.replace(CASE, f"{CASE}_{match[2]}")].add(match[1])
    return found


def without_words(stem: str) -> tuple[str, str, str]:
    """What stands before the id in a file's name without its ending, the id, and what stands behind it."""
    before, case, behind = "", stem, ""
    while (match := re.match(r"([A-Za-z]+)([-_. ](?=.)|(?=\d))", case)) and match[1].lower() in ROLES:
        before, case = before + match[0], case[match.end() :]
    while (match := re.search(r"(?<=.)[-_. ]([A-Za-z0-9]+)$", case)) and match[1].lower() in ROLES | MODALITY_WORDS:
        case, behind = case[: match.start()], match[0] + behind
    return before, case, behind


def words_of(text: str) -> set[str]:
    """The words of a name, in lower case."""
    return set(re.split(r"[^a-z0-9]+", text.lower())) - {""}


def _candidates(groups: Groups) -> str:
    return ", ".join(f"'{pattern}' ({len(cases)} cases)" for pattern, cases in sorted(groups.items()))


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:3])
