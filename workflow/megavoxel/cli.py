"""The command line: one subcommand for each module of `megavoxel.stages`.

Only the module of the requested stage is imported, so that `megavoxel check` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from megavoxel import __version__
from megavoxel.errors import INTERRUPTED, Interrupted, UserError, printable
from megavoxel.files import FAILING_DISK

GROUPS = {
    "every day": {
        "init": "look at a folder of images and write a first dataset and study file",
        "status": "show the progress of the runs of a study",
        "export": "make a model that can be used elsewhere, from trained runs",
        "import": "make such a model from a trained folder of nnU-Net",
        "predict": "label images by the sliding window",
        "evaluate": "score label maps: DSC and NSD",
        "calibrate": "measure rate and memory of this device for forecasts",
        "tensorboard": "write the training curves as event files of TensorBoard",
        "track": "bring the training curves to MLflow, or to Weights & Biases",
        "crate": "pack a finished study with its provenance, as a Workflow Run RO-Crate",
    },
    "what Snakemake runs, by hand": {
        "fetch": "bring a dataset to data/: download, link a folder, or make phantoms",
        "check": "read every case and list all faults",
        "fingerprint": "measure shapes, spacings and intensities of a dataset",
        "split": "divide the training cases into folds",
        "plan-preprocessing": "choose spacing, axis order and normalisation",
        "plan": "choose patch, batch and network of a setting",
        "estimate": "forecast memory and hours of every setting of a study",
        "preprocess": "crop, normalise and resample cases",
        "train": "train a setting on a fold",
        "time": "measure seconds per image of a trained setting",
        "stage1": "bring first-stage label maps to the grid of the second stage of a cascade",
        "ensemble": "average the probabilities of several settings",
        "postprocess": "keep largest components where cross-validation improves",
        "temperature": "choose what a setting's logits are divided by, by cases that its networks did not see",
        "report": "tables, figures and a page from the scores",
    },
    "containers and tests": {
        "phantom": "make a synthetic labelled CT-like dataset from a seed",
        "wheels": "download the packages of a container image",
        "image": "build a container image",
        "lock-images": "write the lock file that describes the container images",
    },
}
"""Stages by who calls them, each with what it does."""
STAGES = {name: summary for group in GROUPS.values() for name, summary in group.items()}
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# At its end Python looks for garbage in all that was ever imported, which takes longer than many a stage: 0.6 s of
# PyTorch's modules. Memory goes back to the system without that.
atexit.register(gc.freeze)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one stage.

    Returns:
        0; 1 after an error that its message explains; 2 after wrong usage; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in STAGES:
        return _top_level(arguments)
    try:
        with _second_interrupt_kills():
            _run_stage(arguments[0], arguments[1:])
    except (Interrupted, KeyboardInterrupt) as interrupt:
        after = str(interrupt) or "interrupted; nothing half-written was left behind: run it again"
        if os.environ.get("RANK", "0") == "0":  # the first of a group speaks for all
            print(printable(f"megavoxel {arguments[0]}: {after}"), file=sys.stderr)
        return INTERRUPTED
    except (UserError, MemoryError, OSError) as error:
        message = _explained(error)
        if message is None:
            raise
        print(printable(f"megavoxel {arguments[0]}: error: {message}"), file=sys.stderr)
        return 1
    return 0


def _run_stage(name: str, options: list[str]) -> None:
    stage = importlib.import_module(f"megavoxel.stages.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"megavoxel {name}", description=stage.__doc__)
    stage.add_arguments(parser)
    with _told_to_runner():
        stage.run(parser.parse_args(options))


@contextmanager
def _second_interrupt_kills() -> Iterator[None]:
    """Within a `with` block, the first Ctrl-C raises KeyboardInterrupt, and the second ends the process at once."""

    def first(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # nohup, for example, ignores it
        yield
        return
    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _told_to_runner() -> AbstractContextManager:
    """In one of several processes of a job, leaves an error for the process that started them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from megavoxel.distributed.launch import told_to_runner

    return told_to_runner()


def _explained(error: Exception) -> str | None:
    """What the user can do about an error, in one line; None if it needs its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "memory ran out; run it with more memory, or with fewer --processes if there are several"
    if error.errno in FULL_DISK:
        place = f" while writing {error.filename}" if error.filename else ""
        return (
            f"no space left on the disk{place} ({error.strerror}); nothing half-written was left behind: free some "
            "space and run the stage again"
        )
    if error.errno in FAILING_DISK:
        return (
            f"{error.filename or 'a file'}: the system says '{error.strerror}', so the disk or the connection to it "
            "fails; see to it, then run the stage again"
        )
    if error.filename and error.strerror:
        return (
            f"{error.filename}: the system says '{error.strerror}'; name a path that is there and that you may use, or "
            "mend this one"
        )
    return None


def _top_level(arguments: list[str]) -> int:
    width = max(map(len, STAGES))
    listing = "\n\n".join(
        f"{title}:\n" + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in stages.items())
        for title, stages in GROUPS.items()
    )
    parser = argparse.ArgumentParser(
        prog="megavoxel",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{listing}\n\n'megavoxel STAGE --help' explains one. A whole study is run by 'snakemake'.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("stage", metavar="STAGE", choices=list(STAGES), help="what to do")
    if not arguments:
        parser.print_help()
        return 0
    parser.parse_args(arguments)
    return 2
