"""Choice of a normalisation for each channel by nnU-Net's rules, separately for each modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megavoxel.config.setting import IntensityRange, Preprocessing
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.planning.fingerprint import Fingerprint, Intensities
from megavoxel.planning.plan import ChannelNormalisation

CROP_RATIO = 0.75
"""Below this median ratio of cropped to full volume, z-scores are taken of the nonzero region."""
BY_NAME = {"ct": "ct", "nonorm": "unchanged", "rescale_to_0_1": "rescale-0-1", "rgb_to_0_1": "rgb-0-1"}
"""Schemes by the names of channels in small letters, as nnU-Net reads them; any other name is `z-score`."""


STATISTICS = {
    "ct": "; statistics of the foreground of its own cases",
    "z-score": "; statistics of each image itself",
    "rescale-0-1": "; lowest and highest value of each image itself",
}
"""Words of the note about a modality, by scheme."""


@dataclass(frozen=True, kw_only=True)
class PlannedNormalisation:
    """Rules per channel, or per modality and channel, and notes for the reader."""

    rules: tuple[ChannelNormalisation, ...] = ()
    by_modality: dict[str, tuple[ChannelNormalisation, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_normalisation(cases: Cases, fingerprint: Fingerprint, keys: Preprocessing) -> PlannedNormalisation:
    """Chooses a scheme by the name of the channel, or of the modality where the dataset has modalities; see `BY_NAME`.
    A modality is normalised as if its cases were the whole dataset.

    Args:
        keys: the schemes that the study asks for, if any, and whether z-scores are of the nonzero region.

    Raises:
        UserError: the study lists another number of schemes than there are channels.
    """
    fixed = _fixed(cases, keys)
    if not fingerprint.modalities:
        inside = _inside(keys, fingerprint.median_crop_ratio)
        return _one_kind(cases.channels, fingerprint.intensities, fixed, inside, fingerprint.median_crop_ratio)
    ratios = _crop_ratios(cases, fingerprint)
    kinds = {
        name: _modality(name, intensities, fixed, _inside(keys, ratios[name]), ratios[name])
        for name, intensities in fingerprint.modalities.items()
    }
    return PlannedNormalisation(
        by_modality={name: kind.rules for name, kind in kinds.items()},
        notes=tuple(note for kind in kinds.values() for note in kind.notes),
    )


Fixed = tuple[str | IntensityRange | None, ...]
"""The scheme that the study asks for, per channel; None: by the name."""


def _fixed(cases: Cases, keys: Preprocessing) -> Fixed:
    if not isinstance(keys.normalisation, tuple):
        return (keys.normalisation,) * len(cases.channels)
    if len(keys.normalisation) != len(cases.channels):
        raise UserError(
            f"preprocessing.normalisation lists {len(keys.normalisation)} schemes; dataset {cases.dataset} has "
            f"{len(cases.channels)} channels ({', '.join(cases.channels)}): list one for each, or give one for all"
        )
    return keys.normalisation


def _inside(keys: Preprocessing, ratio: float) -> bool:
    return ratio < CROP_RATIO if keys.mask_for_norm is None else keys.mask_for_norm


def _one_kind(
    channels: Sequence[str], intensities: Sequence[Intensities], fixed: Fixed, inside: bool, ratio: float
) -> PlannedNormalisation:
    per_channel = zip(channels, intensities, fixed, strict=True)
    rules = tuple(_rule(asked or _scheme(name), of, inside) for name, of, asked in per_channel)
    notes = [
        f"normalisation: channel {name}: {_described(rule)}, {_reason('channel', asked)}"
        for name, rule, asked in zip(channels, rules, fixed, strict=True)
    ]
    return PlannedNormalisation(rules=rules, notes=(*notes, *_note_of_region(rules, ratio, "")))


def _modality(
    modality: str, intensities: Sequence[Intensities], fixed: Fixed, inside: bool, ratio: float
) -> PlannedNormalisation:
    rules = tuple(_rule(asked or _scheme(modality), of, inside) for of, asked in zip(intensities, fixed, strict=True))
    notes = [
        f"normalisation: modality {modality}: {_described(rule)}, {_reason('modality', asked)}"
        f"{STATISTICS.get(rule.scheme, '')}"
        for rule, asked in zip(rules, fixed, strict=True)
    ]
    region = _note_of_region(rules, ratio, f"modality {modality}: ")
    return PlannedNormalisation(rules=rules, notes=(*dict.fromkeys(notes), *region))


def _reason(what: str, asked: str | IntensityRange | None) -> str:
    return f"by the {what}'s name" if asked is None else "fixed by the study"


def _note_of_region(rules: Sequence[ChannelNormalisation], ratio: float, whose: str) -> tuple[str, ...]:
    if not any(rule.inside_nonzero for rule in rules):
        return ()
    return (f"normalisation: {whose}z-score of the nonzero region only: it is {ratio:.0%} of the median case",)


def _crop_ratios(cases: Cases, fingerprint: Fingerprint) -> dict[str, float]:
    """Median over the cases of each modality of voxels after cropping over voxels before."""
    modality_of = {case.id: case.modality for case in cases.cases}
    return {
        name: float(np.median([case.crop_ratio for case in fingerprint.cases if modality_of.get(case.id) == name]))
        for name in fingerprint.modalities
    }


def _scheme(name: str) -> str:
    return BY_NAME.get(name.casefold(), "z-score")


def _described(rule: ChannelNormalisation) -> str:
    return f"{rule.lower:g} to {rule.upper:g} becomes 0 to 1" if rule.scheme == "range" else rule.scheme


def _rule(scheme: str | IntensityRange, intensities: Intensities, inside: bool) -> ChannelNormalisation:
    if isinstance(scheme, IntensityRange):
        lower, upper = scheme.range
        return ChannelNormalisation(scheme="range", lower=lower, upper=upper)
    if scheme != "ct":
        return ChannelNormalisation(scheme=scheme, inside_nonzero=inside and scheme == "z-score")
    return ChannelNormalisation(
        scheme=scheme,
        mean=intensities.mean,
        std=intensities.std,
        lower=intensities.percentile_0_5,
        upper=intensities.percentile_99_5,
    )
