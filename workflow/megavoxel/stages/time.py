"""Measure seconds per image of a trained setting, warmed up and each case several times, or collect such tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError
from megavoxel.files import atomic_path, table_text
from megavoxel.planning.plan import load_plan, require_first_stage
from megavoxel.planning.splits import cases_of, load_splits

if TYPE_CHECKING:  # both are loaded when there is something to time
    import pandas

    from megavoxel.inference.predict import CasePredictor

NEEDED = ("plan", "weights", "preprocessed", "splits", "split", "fold")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--output", type=Path, required=True, help="table of one row per case and repeat")
    parser.add_argument("--collect", type=Path, nargs="+", help="tables that this stage wrote, to be one; alone")
    parser.add_argument("--plan", type=Path, help="plan.json of the setting")
    parser.add_argument("--weights", type=Path, help="model.pt of a fold")
    parser.add_argument("--preprocessed", type=Path, help="folder of the preprocessed cases")
    parser.add_argument("--splits", type=Path, help="splits.json of the study")
    parser.add_argument("--split", choices=["validation", "test"], help="which cases")
    parser.add_argument("--fold", type=int, help="the fold of the weights")
    parser.add_argument("--stage1", type=Path, nargs="+", default=[], help="folder that 'megavoxel stage1' wrote")
    parser.add_argument("--repeats", type=int, default=3, help="predictions of each case; default: 3")
    parser.add_argument("--warm-up", type=int, default=1, help="predictions before the clock is read; default: 1")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:0, …")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")


def run(arguments: argparse.Namespace) -> None:
    """Writes setting,split,fold,case,repeat,seconds,window; the file appears when all cases are done."""
    if arguments.collect:
        import pandas

        rows = pandas.concat([_read(path) for path in arguments.collect], ignore_index=True)
    else:
        rows = _measured(arguments)
        if rows is None:
            return
    with atomic_path(arguments.output) as partial:
        rows.to_csv(partial, index=False)


def _read(path: Path) -> pandas.DataFrame:
    import pandas

    from megavoxel.reporting.costs import COLUMNS

    if not path.is_file():
        raise UserError(f"--collect {path}: no such file; run 'megavoxel time' for it")
    try:
        rows = pandas.read_csv(table_text(path))
    except ValueError:  # pandas' errors of reading are all of this kind
        rows = pandas.DataFrame()
    if list(rows.columns) != COLUMNS:
        raise UserError(f"--collect {path}: expected the columns {','.join(COLUMNS)}; run 'megavoxel time' again")
    return rows


def _measured(arguments: argparse.Namespace) -> pandas.DataFrame | None:
    """None in processes that hold a later stage of a pipeline."""
    missing = [name for name in NEEDED if getattr(arguments, name) is None]
    if missing:
        raise UserError(f"give --collect, or all of --{', --'.join(NEEDED)}; --{missing[0]} is missing")
    if arguments.repeats < 1 or arguments.warm_up < 0:
        raise UserError(
            f"--repeats {arguments.repeats} --warm-up {arguments.warm_up}: at least 1 repeat, and 0 or more to warm up"
        )
    plan = load_plan(arguments.plan)
    require_first_stage(plan, arguments.stage1, option="--stage1")
    names = cases_of(load_splits(arguments.splits), arguments.split, arguments.fold)

    from megavoxel.forecast.prediction import explained_predictor

    with explained_predictor(plan, [arguments.weights], "time", arguments) as predictor:
        return None if predictor is None else _timed(predictor, names, arguments)


def _timed(predictor: CasePredictor, names: Sequence[str], arguments: argparse.Namespace) -> pandas.DataFrame:
    import pandas

    from megavoxel.forecast.prediction import WholeImages
    from megavoxel.inference.timing import time_cases
    from megavoxel.network.first_stage import with_first_stage
    from megavoxel.preprocessing.store import open_case
    from megavoxel.reporting.costs import COLUMNS

    plan, whole_images = predictor.plan, WholeImages.of(predictor)
    stored = {name: open_case(arguments.preprocessed, name) for name in names}
    for name, case in stored.items():
        whole_images.check(name, case.properties.shape)
    cases = (
        (name, with_first_stage(plan, case.image, case.properties, arguments.stage1)) for name, case in stored.items()
    )
    rows = []
    for found in time_cases(predictor, cases, repeats=arguments.repeats, warm_up=arguments.warm_up):
        print(f"{found.case}  {found.repeat}/{arguments.repeats}  {found.seconds:.3f} s", flush=True)
        run_of = (plan.setting, arguments.split, arguments.fold)
        rows.append((*run_of, found.case, found.repeat, round(found.seconds, 6), found.window))
    return pandas.DataFrame(rows, columns=COLUMNS)
