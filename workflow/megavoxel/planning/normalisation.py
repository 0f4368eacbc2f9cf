"""Choice of a normalisation for each channel by nnU-Net's rules, separately for each modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megavoxel.config.setting import IntensityRange
from megavoxel.datasets.cases import Cases
from megavoxel.planning.fingerprint import Fingerprint, Intensities
from megavoxel.planning.plan import ChannelNormalisation

CROP_RATIO = 0.75
"""Below this median ratio of cropped to full volume, z-scores are taken of the nonzero region."""


STATISTICS = {
    "ct": "; statistics of the foreground of its own cases",
    "z-score": "; statistics of each image itself",
    "range": "",
}
"""Words of the note about a modality, by scheme."""


@dataclass(frozen=True, kw_only=True)
class PlannedNormalisation:
    """Rules per channel, or per modality and channel, and notes for the reader."""

    rules: tuple[ChannelNormalisation, ...] = ()
    by_modality: dict[str, tuple[ChannelNormalisation, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_normalisation(
    cases: Cases, fingerprint: Fingerprint, fixed: str | IntensityRange | None
) -> PlannedNormalisation:
    """Chooses `ct` for what is named CT and `z-score` for anything else; the name is that of the channel, or of the
    modality where the dataset has modalities. A modality is normalised as if its cases were the whole dataset.

    Args:
        fixed: the scheme that the study asks for; None: by the name.
    """
    if not fingerprint.modalities:
        return _one_kind(cases.channels, fingerprint.intensities, fixed, fingerprint.median_crop_ratio)
    ratios = _crop_ratios(cases, fingerprint)
    kinds = {
        name: _modality(name, intensities, fixed, ratios[name]) for name, intensities in fingerprint.modalities.items()
    }
    return PlannedNormalisation(
        by_modality={name: kind.rules for name, kind in kinds.items()},
        notes=tuple(note for kind in kinds.values() for note in kind.notes),
    )


def _one_kind(
    channels: Sequence[str], intensities: Sequence[Intensities], fixed: str | IntensityRange | None, ratio: float
) -> PlannedNormalisation:
    inside = ratio < CROP_RATIO
    rules = tuple(_rule(fixed or _scheme(name), of, inside) for name, of in zip(channels, intensities, strict=True))
    reason = "fixed by the study" if fixed else "by the channel's name"
    notes = [
        f"normalisation: channel {name}: {_described(rule)}, {reason}"
        for name, rule in zip(channels, rules, strict=True)
    ]
    if any(rule.inside_nonzero for rule in rules):
        notes.append(f"normalisation: z-score of the nonzero region only: it is {ratio:.0%} of the median case")
    return PlannedNormalisation(rules=rules, notes=tuple(notes))


def _modality(
    modality: str, intensities: Sequence[Intensities], fixed: str | IntensityRange | None, ratio: float
) -> PlannedNormalisation:
    scheme = fixed or _scheme(modality)
    rules = tuple(_rule(scheme, of, ratio < CROP_RATIO) for of in intensities)
    reason = "fixed by the study" if fixed else "by the modality's name"
    notes = [f"normalisation: modality {modality}: {_described(rules[0])}, {reason}{STATISTICS[rules[0].scheme]}"]
    if any(rule.inside_nonzero for rule in rules):
        notes.append(
            f"normalisation: modality {modality}: z-score of the nonzero region only: it is {ratio:.0%} of the median "
            "case"
        )
    return PlannedNormalisation(rules=rules, notes=tuple(notes))


def _crop_ratios(cases: Cases, fingerprint: Fingerprint) -> dict[str, float]:
    """Median over the cases of each modality of voxels after cropping over voxels before."""
    modality_of = {case.id: case.modality for case in cases.cases}
    return {
        name: float(np.median([case.crop_ratio for case in fingerprint.cases if modality_of.get(case.id) == name]))
        for name in fingerprint.modalities
    }


def _scheme(name: str) -> str:
    return "ct" if name.casefold() == "ct" else "z-score"


def _described(rule: ChannelNormalisation) -> str:
    return f"{rule.lower:g} to {rule.upper:g} becomes 0 to 1" if rule.scheme == "range" else rule.scheme


def _rule(scheme: str | IntensityRange, intensities: Intensities, inside: bool) -> ChannelNormalisation:
    if isinstance(scheme, IntensityRange):
        lower, upper = scheme.range
        return ChannelNormalisation(scheme="range", lower=lower, upper=upper)
    if scheme == "z-score":
        return ChannelNormalisation(scheme=scheme, inside_nonzero=inside)
    return ChannelNormalisation(
        scheme=scheme,
        mean=intensities.mean,
        std=intensities.std,
        lower=intensities.percentile_0_5,
        upper=intensities.percentile_99_5,
    )
