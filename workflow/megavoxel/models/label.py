"""Labels new scans, in turn: finished ones are skipped, faulty ones are named and left out."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavoxel.errors import UserError, printable
from megavoxel.files import read_json, scratch_directory, write_json
from megavoxel.inference.finished import key_of
from megavoxel.models.scans import RECORD, Scan
from megavoxel.progress import progress

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    import blosc2
    import numpy as np

    from megavoxel.evaluation.postprocessing import Postprocessing
    from megavoxel.forecast.prediction import WholeImages
    from megavoxel.inference.logits import Logits
    from megavoxel.inference.predict import CasePredictor
    from megavoxel.models.prepare import Reading
    from megavoxel.network.first_stage import ImageWithFirstStage
    from megavoxel.planning.plan import Plan
    from megavoxel.preprocessing.store import CaseProperties
    from megavoxel.volumes.volume import Volume


class NotLabelled(UserError):
    """Some scans could not be labelled; the others were.

    Args:
        faults: what is wrong, by case.
        scans: all that were to be labelled.
    """

    def __init__(self, faults: Mapping[str, str], scans: Sequence[Scan]) -> None:
        remedy = "; to leave out what is no scan, add --leave-out" if any(scan.fault for scan in scans) else ""
        told = [faults[scan.case] for scan in scans if scan.case in faults]
        if len(told) == len(scans) == 1:
            super().__init__(f"{told[0]}{remedy}")
        else:
            head = f"{len(told)} of {len(scans)} cases were not labelled:"
            super().__init__("\n  ".join([head, *told]) + remedy)
        self.faults = dict(faults)


SCANS = "scans"
"""Entry of the record with the key of each scan by its case."""


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Where label maps go, and how they are made."""

    output: Path
    """Folder."""
    model: dict[str, str]
    """Name of the model and checksums of what it is made of: a folder takes label maps of one model."""
    postprocessing: Postprocessing | None
    reading: Reading
    logits: Path | None = None
    """Folder in which the logits are kept, which an ensemble needs; None: they are removed."""
    first_stage: tuple[Path, ...] = ()
    """Folders of label maps by each setting of the first stage, where this is the second stage of a cascade."""
    probabilities: bool = False
    """Whether CASE.probabilities.nii.gz is written, too."""
    temperature: float = 1.0
    """What logits are divided by before they become these probabilities."""
    uncertainty: bool = False
    """Whether CASE.uncertainty.nii.gz is written, too."""
    pictures: bool = False
    """Whether CASE.png and the volumes of its labels are written, too."""

    def label_map(self, scan: Scan) -> Path:
        """Written last of the files of a scan."""
        return self.output / f"{scan.case}{scan.suffix}"

    def probability_map(self, scan: Scan) -> Path | None:
        """None where nobody asked for it."""
        return self.output / f"{scan.case}.probabilities.nii.gz" if self.probabilities else None

    def uncertainty_map(self, scan: Scan) -> Path | None:
        """None where nobody asked for it."""
        return self.output / f"{scan.case}.uncertainty.nii.gz" if self.uncertainty else None

    def picture(self, scan: Scan) -> Path | None:
        """None where nobody asked for it."""
        return self.output / f"{scan.case}.png" if self.pictures else None

    def volumes(self, scan: Scan) -> Path | None:
        """None where nobody asked for it."""
        return self.output / f"{scan.case}.volumes.json" if self.pictures else None

    def finished(self, scan: Scan, made: Mapping[str, str]) -> bool:
        """Whether all files of a scan are there, made from the scan as it is.

        Args:
            made: the key of each scan by its case, as it was when it was labelled.
        """
        if scan.fault or scan.case not in made:
            return False
        logits = None if self.logits is None else self.logits / f"{scan.case}.json"
        maps = (self.label_map(scan), self.probability_map(scan), self.uncertainty_map(scan))
        files = (*maps, self.picture(scan), self.volumes(scan), logits)
        return all(path is None or path.is_file() for path in files) and made[scan.case] == self.key(scan)

    def key(self, scan: Scan) -> str:
        """Says what a scan is labelled from: its files, what the user says of them, and labels of the first stage."""
        said = [self.reading.modality, self.reading.orientation, self.reading.sides, self.reading.series]
        return key_of(said, [*scan.contents, *filter(Path.is_file, self.first_stage_maps(scan))])

    def first_stage_maps(self, scan: Scan) -> list[Path]:
        """The label maps of the first stage, by setting."""
        return [folder / f"{scan.case}{scan.suffix}" for folder in self.first_stage]

    def made(self) -> dict[str, str]:
        """The key of each scan that was labelled by case; empty where the folder is new.

        Raises:
            UserError: the folder has other content, or label maps of another model.
        """
        folder, record = self.output, self.output / RECORD
        if not record.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(
                    f"{folder}: has content already and is not replaced; name a new folder, or empty this one"
                )
            return {}
        found = read_json(record, what="record of a prediction")
        made = found.pop(SCANS, {}) if isinstance(found, dict) else {}
        if found != self.model or not isinstance(made, dict):
            raise UserError(
                f"{folder}: its label maps were made by another model, or another state of this one; name a new folder"
            )
        return made

    def note(self, made: Mapping[str, str]) -> None:
        """Writes down the keys of scans that have been labelled, beside those that are there, by case."""
        write_json(self.output / RECORD, {**self.model, SCANS: dict(sorted((self.made() | dict(made)).items()))})


def unfinished(scans: Sequence[Scan], labelling: Labelling) -> list[Scan]:
    """The scans that are not finished in a folder of label maps, which may be new.

    Raises:
        UserError: the folder has other content, or label maps of another model.
    """
    made = labelling.made()
    left = [scan for scan in scans if not labelling.finished(scan, made)]
    if len(left) < len(scans):
        print(f"{len(scans) - len(left)} of {len(scans)} cases are there already", flush=True)
    if left and all(scan.fault for scan in left):
        raise NotLabelled({scan.case: scan.fault for scan in left}, left)
    return left


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What became of a scan."""

    case: str
    key: str
    fault: str | None
    """Why it has no label map."""


def label_scans(scans: Sequence[Scan], predictor: CasePredictor, labelling: Labelling) -> None:
    """Labels scans, with a line for each.

    Raises:
        NotLabelled: the faults of all scans that could not be labelled, after the others were.
    """
    with gathered(scans, labelling) as gather:
        label_each(scans, predictor, labelling, gather)


def label_each(
    scans: Sequence[Scan], predictor: CasePredictor, labelling: Labelling, done: Callable[[Labelled], None]
) -> None:
    """Labels scans: one is read and another is written while a third is predicted.

    Args:
        done: called in a thread for one scan after another, as soon as it has all its files or is given up.
    """
    from megavoxel.forecast.prediction import WholeImages

    whole_images = WholeImages.of(predictor)
    with scratch_directory(labelling.output) as scratch:
        _NetworkSteps(
            plan=predictor.plan, predictor=predictor, whole_images=whole_images, labelling=labelling, scratch=scratch,
            done=done,
        ).run(scans)  # fmt: skip


@contextmanager
def gathered(scans: Sequence[Scan], labelling: Labelling) -> Iterator[Callable[[Labelled], None]]:
    """A function that notes what becomes of each scan, with a line for it.

    Raises:
        NotLabelled: at the end, the faults of all scans that could not be labelled.
    """
    labelling.note({})  # not before, since the model may have been refused
    faults = {}
    with progress("predict", len(scans)) as shown:

        def gather(labelled: Labelled) -> None:
            if labelled.fault:
                faults[labelled.case] = labelled.fault
            else:
                labelling.note({labelled.case: labelled.key})
            told = ": not labelled, see below" if labelled.fault else ""
            shown.advance(line=printable(f"case {labelled.case}{told}"))

        yield gather
    if labelling.pictures:
        from megavoxel.models.volumes import collect_volumes

        collect_volumes(labelling.output)
    if faults:
        raise NotLabelled(faults, scans)


def _with_first_stage(
    image: np.ndarray | blosc2.NDArray, properties: CaseProperties, plan: Plan, labelling: Labelling, scan: Scan
) -> np.ndarray | blosc2.NDArray | ImageWithFirstStage:
    """What the network is given of a scan: in the second stage of a cascade, its first stage's labels as well."""
    from megavoxel.network.first_stage import ImageWithFirstStage
    from megavoxel.preprocessing.first_stage import first_stage_classes

    if not plan.stage1:
        return image
    labels = first_stage_classes(labelling.first_stage_maps(scan), properties, plan, labelling.reading.hints)
    return ImageWithFirstStage(image=image, first_stage=labels, classes=plan.network.classes)


@dataclass(kw_only=True)
class Turn:
    """A scan on its way, and what there is of it."""

    scan: Scan
    fault: str | None
    """What is wrong with it, where that has been found: no further step is taken then."""
    folder: Path
    """For files that are not to stay; removed behind the last step."""
    key: str = ""
    volumes: list[Volume] = field(default_factory=list)
    prepared: tuple[Any, CaseProperties] | None = None
    """Image on the network's grid; None: not yet, as it is too large to be read before its turn."""
    logits: Logits | None = None

    def step(self, work: Callable[[Turn], None]) -> Turn:
        """Takes a step, unless there is a fault already; what is wrong where that cannot be done is the fault."""
        try:
            if self.fault is None:
                work(self)
        except UserError as error:
            named = self.scan.case in str(error)
            self.fault = str(error) if named else f"case {self.scan.case}: {error}"
        except MemoryError:
            self.fault = f"case {self.scan.case}: memory ran out; run it with more memory, or with --large-voxels 1"
        if self.fault:
            self.clear()
        return self

    def clear(self) -> None:
        """Removes what is not to stay."""
        self.prepared = self.logits = None
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Steps(ABC):
    """The steps of a scan. `read` and `write` run while others are predicted."""

    plan: Plan
    """By which scans are read, and whose labels are written."""
    labelling: Labelling
    scratch: Path
    """Folder for what is not to stay."""
    done: Callable[[Labelled], None]
    """Called in a thread for one scan after another, as soon as it has all its files or is given up."""

    def run(self, scans: Sequence[Scan]) -> None:
        """Takes all scans through all steps."""
        from megavoxel.inference.overlap import overlapped

        for _ in overlapped(scans, self.read, self.predict, self.write):
            pass

    def read(self, scan: Scan) -> Turn:
        """Opened, and prepared if it is not too large to be read ahead."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        return Turn(scan=scan, fault=scan.fault, folder=folder).step(self._read)

    def predict(self, turn: Turn) -> Turn:
        """With its logits in its folder."""
        return turn.step(self._predict)

    def write(self, turn: Turn) -> Turn:
        """With all its files in the output, and told of; so is a fault."""
        turn.step(self._write).clear()
        self.done(Labelled(case=turn.scan.case, key=turn.key, fault=turn.fault))
        return turn

    def _read(self, turn: Turn) -> None:
        from megavoxel.models.prepare import as_in_training, open_scan

        plan = self.plan.preprocessing
        turn.key = self.labelling.key(turn.scan)
        opened = open_scan(turn.scan, plan.channels, self.labelling.reading)
        turn.volumes = as_in_training(plan, turn.scan.case, opened)

    @abstractmethod
    def _predict(self, turn: Turn) -> None: ...

    @abstractmethod
    def _write_maps(self, turn: Turn) -> None:
        """Writes CASE.nii.gz in the folder of the turn, and what was asked for beside the label map."""

    def _write(self, turn: Turn) -> None:
        from megavoxel.models import outputs

        labelling, scan = self.labelling, turn.scan
        self._write_maps(turn)
        made = turn.folder / f"{scan.case}.nii.gz"
        outputs.postprocess_in_place(made, labelling.postprocessing, self.plan.preprocessing.structures)
        if picture := labelling.picture(scan):
            self._write_picture(turn, picture, made)
        outputs.write_label_map(turn.volumes[0], made, labelling.label_map(scan))

    def _write_picture(self, turn: Turn, picture: Path, made: Path) -> None:
        from megavoxel.models.volumes import write_volumes
        from megavoxel.reporting.picture import write_picture

        scan, plan, volume = turn.scan, self.plan.preprocessing, turn.volumes[0]
        modality = self.labelling.reading.modality or volume.modality or plan.channels[0]
        sizes = write_picture(picture, volume, made, plan.labels, title=scan.case, modality=modality)
        write_volumes(self.labelling.volumes(scan), scan.case, sizes)


@dataclass(frozen=True, kw_only=True)
class _NetworkSteps(Steps):
    """The steps of scans that go through the networks of a setting."""

    predictor: CasePredictor
    whole_images: WholeImages

    def _read(self, turn: Turn) -> None:
        from megavoxel.inference.overlap import is_read_ahead

        super()._read(turn)
        if is_read_ahead(*(volume.shape for volume in turn.volumes)):
            self._prepare(turn)

    def _prepare(self, turn: Turn) -> None:
        from megavoxel.models.prepare import prepared

        turn.prepared = prepared(turn.scan, turn.volumes, self.plan, self.labelling.reading, turn.folder)

    def _predict(self, turn: Turn) -> None:
        if turn.prepared is None:
            self._prepare(turn)
        image, properties = turn.prepared
        self.whole_images.check(turn.scan.case, image.shape[1:])
        image = _with_first_stage(image, properties, self.plan, self.labelling, turn.scan)
        labelling = self.labelling
        turn.logits = self.predictor.logits(
            image, properties, labelling.logits, turn.folder, disagreement=labelling.uncertainty
        )
        turn.prepared = None

    def _write_maps(self, turn: Turn) -> None:
        from megavoxel.inference.logits import write_label_map
        from megavoxel.models import outputs

        labelling, scan, logits = self.labelling, turn.scan, turn.logits
        write_label_map(turn.folder, logits.header, logits.slabs())
        if path := labelling.probability_map(scan):
            probabilities = logits.probabilities(labelling.temperature)
            outputs.write_probabilities(path, logits.header, probabilities, turn.folder, turn.volumes[0])
        if uncertainty := labelling.uncertainty_map(scan):
            outputs.write_uncertainty(uncertainty, logits.disagreement, turn.folder, turn.volumes[0])
