"""Whether patches suit a network: what it pads them to, and how small one may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megavoxel.config.study import Setting
from megavoxel.errors import UserError
from megavoxel.planning.patch import Candidate, Frame
from megavoxel.planning.plan import Plan
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import divisor_of, padded_patch


def padding_notes(plan: Plan) -> list[str]:
    """A note for each patch of a plan that is not a multiple of the network's stride: those of all phases, and the
    expanded one."""
    divisor = divisor_of(plan.network.strides)
    named = [("patch", phase.patch) for phase in plan.by_phase()]
    if plan.expanded_patch is not None:
        named.append(("expanded patch", plan.expanded_patch))
    return [
        f"{name}: not a multiple of the network's stride; padded inside from {times(size)} to {times(inside)}, logits "
        "are cropped"
        for name, size in dict.fromkeys((name, tuple(size)) for name, size in named)
        if (inside := padded_patch(size, divisor)) != size
    ]


def check_sizes(plan: Plan) -> None:
    """Refuses what leaves a single voxel at the lowest level, of which there is no deviation to normalise by.

    Raises:
        UserError: with the stride that a patch or window has to be above.
    """
    divisor = divisor_of(plan.network.strides)
    for name, size in _sizes(plan):
        if padded_patch(size, divisor) == divisor:
            raise UserError(
                f"setting {plan.setting}: {name} {times(size)} leaves one voxel at the lowest of "
                f"{len(plan.network.strides)} levels, which cannot be normalised; take one of more than "
                f"{times(divisor)} voxels along some axis, or fewer levels in 'network'"
            )


def _sizes(plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (("patch", phase.patch) for phase in plan.by_phase())
    if plan.inference.window is not None and not isinstance(plan.inference.window, str):
        yield "inference.window", plan.inference.window


def check_levels(frame: Frame, setting: Setting, patch: Sequence[int]) -> None:
    """Refuses more levels than a patch allows.

    Raises:
        UserError: with the number that it does allow.
    """
    wanted, possible = setting.network.fixed_levels, frame.topology(patch).levels
    if wanted is not None and wanted > possible:
        raise UserError(
            f"setting {setting.name}: network has {wanted} levels, but patch "
            f"{times(setting.network.for_patch or patch)} at spacing "
            f"{times(frame.spacing)} mm allows at most {possible}; lower it, or leave it out"
        )


def network_note(candidate: Candidate, setting: Setting) -> str:
    """How many levels the network has, and why."""
    keys = setting.network
    if keys.fixed_levels:
        reason = "fixed by the study"
    elif keys.for_patch:
        reason = f"as many as the patch {times(keys.for_patch)} and the spacing allow, for which the network is made"
    else:
        reason = "as many as patch and spacing allow"
    return f"network: {len(candidate.network.features)} levels ({reason}), stride {times(candidate.divisor)}"
