"""Whether a patch, or a window, can be cut into tiles so that the result is that of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.planning.patch import has_turns, predicting_devices
from megavoxel.planning.plan import Plan
from megavoxel.planning.spacing import times
from megavoxel.planning.tiling import cells_of, even_tiling
from megavoxel.planning.topology import shape_of


def check_tiles(plan: Plan, parallel: Parallel, where: str) -> None:
    """Refuses tiles that a patch or a network does not allow, and what needs more of a patch than tiles tell.

    Args:
        plan: of a setting, or of a phase of it.
        parallel: ways of spreading a step, which may be others than those of the plan.
        where: setting and key, for messages.

    Raises:
        UserError: naming what does not go with tiles, or how many are allowed.
    """
    if parallel.tiles == 1:
        return
    if parallel.pipeline > 1:
        raise UserError(
            f"{where}: the stages of a pipeline hold whole patches; set pipeline to 1, or space to [1, 1, 1]"
        )
    if plan.expanded_patch is not None:
        raise UserError(
            f"{where}: tiles of a patch are no tiles of the expanded patch around it; remove 'expansion', or set space "
            "to [1, 1, 1]"
        )
    if "perimeter" in plan.training.loss:
        raise UserError(
            f"{where}: training.loss {plan.training.loss} looks at the neighbours of each voxel, which may lie in "
            "another tile; take another loss, or set space to [1, 1, 1]"
        )
    _check_cells("a patch", plan.patch, plan, parallel.space, where)
    window = plan.inference.window
    if not isinstance(window, str | None) and predicting_devices(replace(plan, parallel=parallel)) > 1:
        _check_cells("an inference.window", window, plan, parallel.space, where)


def check_turns(plan: Plan, parallel: Parallel) -> None:
    """Refuses tiles in turn of windows that go over several devices, or that have too few cells.

    Raises:
        UserError: naming the setting and what is allowed.
    """
    if not has_turns(plan):
        return
    window, where = plan.inference.window, f"setting {plan.setting}: inference.tiles"
    devices = predicting_devices(replace(plan, parallel=parallel))
    if devices > 1:
        raise UserError(f"{where}: windows go over the {devices} devices that hold a patch in training; leave it out")
    if isinstance(window, str | None):
        _check_cells("a patch", plan.patch, plan, plan.inference.tiles, where)
    else:
        _check_cells("an inference.window", window, plan, plan.inference.tiles, where)


def _check_cells(what: str, size: Sequence[int], plan: Plan, space: Sequence[int], where: str) -> None:
    """Refuses more tiles than there are cells, and tiles that are too thin."""
    shape = shape_of(plan.network)
    cells = cells_of(size, shape.divisor)
    for axis, (name, count, parts) in enumerate(zip("zyx", cells, space, strict=True)):
        if parts > count:
            raise UserError(
                f"{where}: {parts} tiles along {name}, but {what} of {times(size)} voxels has {count} "
                f"cell{'s' * (count > 1)} of the network's stride ({shape.divisor[axis]} voxels) there; allowed along "
                f"{name}: 1 to {count}"
            )
    _check_reach(what, size, plan, space, where)


def _check_reach(what: str, size: Sequence[int], plan: Plan, space: Sequence[int], where: str) -> None:
    """Refuses tiles so thin that a convolution would see beyond the neighbouring one."""
    shape = shape_of(plan.network)
    smallest = even_tiling(size, shape.divisor, space).smallest
    for level, (kernel, stride) in enumerate(zip(plan.network.kernels, shape.strides, strict=True)):
        sides = zip("zyx", kernel, stride, shape.divisor, smallest, space, strict=True)
        for name, extent, step, cell, cells, parts in sides:
            voxels = cells * cell // step
            if parts > 1 and (extent - 1) // 2 > voxels:
                raise UserError(
                    f"{where}: at level {level} of the network the thinnest tile of {what} has {voxels} "
                    f"voxel{'s' * (voxels > 1)} along {name}, and a kernel of {extent} sees beyond it; take fewer "
                    f"tiles along {name}"
                )
