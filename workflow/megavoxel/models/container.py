"""A model as a folder from which Apptainer or Docker builds an image that labels scans."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from megavoxel.containers.lock import source_files
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, write_text

CHECKOUT = Path(__file__).parents[3]
"""The checkout that this code is part of, if it is of one."""
RECIPES = {"model.def": "model.def", "model.Dockerfile": "Dockerfile", "label": "label"}
"""Files of `containers/`, and what they are called beside a model."""
BESIDE_THE_SOURCES = ("README.md", "LICENSE")
"""Files that the build of megavoxel reads, beside those of `containers.lock.SOURCES`."""
MODEL, SOURCES, CARD = "model", "sources", "README.md"
PACKAGE = Path("workflow/megavoxel")


def write_container(write_model: Callable[[Path], None], target: Path, checkout: Path = CHECKOUT) -> None:
    """Writes the folder, whole or not at all: the model, what images are built by, and how.

    Args:
        write_model: writes the exported model as the folder that it is given.
        checkout: of megavoxel.

    Raises:
        UserError: there is content at `target`, this is no checkout, or as `write_model` says.
    """
    missing = [name for name in RECIPES if not (checkout / "containers" / name).is_file()]
    if missing:
        raise UserError(
            f"--format container: takes {missing[0]} and the sources from a checkout of megavoxel, and this is an "
            "installed package; call it in a checkout, or leave it out"
        )
    with atomic_directory(target) as folder:
        write_model(folder / MODEL)
        for name, called in RECIPES.items():
            shutil.copy(checkout / "containers" / name, folder / called)
        _copy_sources(checkout, folder / SOURCES)
        write_text(folder / CARD, _card(target.name))


def _copy_sources(checkout: Path, folder: Path) -> None:
    """Copies what megavoxel is built from; links of the checkout become what they lead to."""
    for path in [*source_files(checkout), *(checkout / name for name in BESIDE_THE_SOURCES)]:
        place = folder / path.relative_to(checkout)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for path in (checkout / PACKAGE).iterdir():
        if path.is_symlink() and path.is_dir():
            shutil.copytree(path, folder / PACKAGE / path.name)


def build_command(folder: Path) -> str:
    """How the image of Apptainer is built, for the end of the stage."""
    return f"next:\n  cd {shlex.quote(str(folder))}\n  apptainer build --build-arg base=IMAGE model.sif model.def"


def _card(name: str) -> str:
    return f"""\
# {name} as a container

One command labels a folder of scans. The model is in `model/`, its card is `model/README.md`.

With Apptainer, on the image `containers/images/cpu.sif` that `snakemake images` builds in a checkout of megavoxel (or
`gpu.sif`, and `apptainer run --nv`):

    apptainer build --build-arg base=/path/to/containers/images/cpu.sif model.sif model.def
    apptainer run model.sif SCANS LABELS

With Docker, which takes the packages of `sources/requirements.lock` from the network:

    docker build --tag {name} .
    docker run --rm --volume /path/to/SCANS:/scans:ro --volume /path/to/LABELS:/labels {name} /scans /labels

Options of `megavoxel predict`, such as `--pictures`, follow behind the two folders.
"""
