"""Labels new scans, one after the other: finished ones are skipped, faulty ones are named and left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError, printable
from megavoxel.evaluation.postprocessing import Postprocessing
from megavoxel.files import read_json, scratch_directory, write_json
from megavoxel.inference.finished import key_of
from megavoxel.models.scans import RECORD, Scan
from megavoxel.progress import progress

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    import blosc2
    import numpy as np

    from megavoxel.forecast.prediction import WholeImages
    from megavoxel.inference.predict import CasePredictor
    from megavoxel.models.prepare import Reading
    from megavoxel.network.first_stage import ImageWithFirstStage
    from megavoxel.planning.plan import Plan
    from megavoxel.preprocessing.store import CaseProperties


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
    pictures: bool = False
    """Whether CASE.png and the volumes of its labels are written, too."""

    def label_map(self, scan: Scan) -> Path:
        """Written last of the files of a scan."""
        return self.output / f"{scan.case}{scan.suffix}"

    def probability_map(self, scan: Scan) -> Path | None:
        """None where nobody asked for it."""
        return self.output / f"{scan.case}.probabilities.nii.gz" if self.probabilities else None

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
        files = (self.label_map(scan), self.probability_map(scan), self.picture(scan), self.volumes(scan), logits)
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
        """Writes down the keys of scans that have been labelled, beside those that are there."""
        write_json(self.output / RECORD, {**self.model, SCANS: self.made() | dict(made)})


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
        _refuse([scan.fault for scan in left], left)
    return left


def label_scans(scans: Sequence[Scan], predictor: CasePredictor, labelling: Labelling) -> None:
    """Labels scans, with a line for each.

    Raises:
        UserError: the faults of all scans that could not be labelled, after the others were.
    """
    from megavoxel.forecast.prediction import WholeImages
    from megavoxel.models.volumes import collect_volumes

    labelling.note({})  # not before, since the model may have been refused
    whole_images = WholeImages.of(predictor)
    faults = []
    with progress("predict", len(scans)) as shown:
        for scan in scans:
            key = labelling.key(scan)
            fault = _fault_of(scan, predictor, whole_images, labelling)
            if fault:
                faults.append(fault)
            else:
                labelling.note({scan.case: key})
            shown.advance(line=printable(f"case {scan.case}{': not labelled, see below' if fault else ''}"))
    if labelling.pictures:
        collect_volumes(labelling.output)
    if faults:
        _refuse(faults, scans)


def _refuse(faults: Sequence[str], scans: Sequence[Scan]) -> None:
    remedy = "; to leave out what is no scan, add --leave-out" if any(scan.fault for scan in scans) else ""
    if len(faults) == len(scans) == 1:
        raise UserError(f"{faults[0]}{remedy}")
    raise UserError(f"{len(faults)} of {len(scans)} cases were not labelled:\n  " + "\n  ".join(faults) + remedy)


def _fault_of(scan: Scan, predictor: CasePredictor, whole_images: WholeImages, labelling: Labelling) -> str | None:
    """Labels a scan; what is wrong with it where that cannot be done."""
    if scan.fault:
        return scan.fault
    try:
        _label(scan, predictor, whole_images, labelling)
    except UserError as error:
        named = scan.case in str(error)
        return str(error) if named else f"case {scan.case}: {error}"
    except MemoryError:
        return f"case {scan.case}: memory ran out; run it with more memory, or with --large-voxels 1"
    return None


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


def _label(scan: Scan, predictor: CasePredictor, whole_images: WholeImages, labelling: Labelling) -> None:
    from megavoxel.inference.logits import open_logits
    from megavoxel.models.outputs import postprocess_in_place, write_label_map, write_probabilities
    from megavoxel.models.prepare import in_unit_of, open_scan, prepared
    from megavoxel.models.volumes import write_volumes
    from megavoxel.reporting.picture import write_picture

    plan = predictor.plan.preprocessing
    with scratch_directory(labelling.output) as scratch:
        volumes = in_unit_of(plan, scan.case, open_scan(scan, plan.channels, labelling.reading))
        image, properties = prepared(scan, volumes, predictor.plan, labelling.reading, scratch)
        whole_images.check(scan.case, image.shape[1:])
        image = _with_first_stage(image, properties, predictor.plan, labelling, scan)
        logits = labelling.logits or (scratch / "logits" if labelling.probabilities else None)
        predictor.write(image, properties, scratch, logits)
        if probabilities := labelling.probability_map(scan):
            write_probabilities(probabilities, open_logits(logits, scan.case), scratch, volumes[0])
        labels = scratch / f"{scan.case}.nii.gz"
        postprocess_in_place(labels, labelling.postprocessing, plan.labels)
        if picture := labelling.picture(scan):
            modality = labelling.reading.modality or volumes[0].modality or plan.channels[0]
            sizes = write_picture(picture, volumes[0], labels, plan.labels, title=scan.case, modality=modality)
            write_volumes(labelling.volumes(scan), scan.case, sizes)
        write_label_map(volumes[0], labels, labelling.label_map(scan))
