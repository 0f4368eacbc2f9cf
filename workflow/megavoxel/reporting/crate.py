"""A finished study as a Workflow Run RO-Crate (profile 0.5, https://w3id.org/ro/wfrun/workflow/0.5): the workflow, what
it was given, what it made, and each training with its software as its manifest has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megavoxel
from megavoxel.config.dataset import Dataset
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, content_hash
from megavoxel.reporting.methods import CLAIM, METHODS, REFERENCES
from megavoxel.reporting.odd import other_plans
from megavoxel.reporting.provenance import flattened
from megavoxel.reporting.stored import Stored
from megavoxel.training.manifest import code_commit

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
VERSION = "1.1"
"""The version of RO-Crate that these profiles extend."""
SOURCE = Path(megavoxel.__file__).parents[2]
"""The checkout."""
MEDIA = {
    ".csv": "text/csv", ".json": "application/json", ".md": "text/markdown", ".yaml": "application/yaml",
    ".bib": "application/x-bibtex", ".pt": "application/octet-stream",
}  # fmt: skip
HOMES = {
    "python": "https://www.python.org", "torch": "https://pytorch.org", "monai": "https://monai.io",
    "numpy": "https://numpy.org", "scipy": "https://scipy.org", "nibabel": "https://nipy.org/nibabel",
    "blosc2": "https://www.blosc.org", "pandas": "https://pandas.pydata.org",
    "snakemake": "https://snakemake.github.io",
}  # fmt: skip
"""Sites of the programs that manifests name."""
FACTS = ("seed", "epochs", "seconds", "devices", "device", "parameters", "hardware", "precision.name", "container")
"""Beginnings of the entries of a manifest that are told of a training."""
REPORT = {METHODS: "draft of the methods", REFERENCES: "references of the methods", CLAIM: "items of CLAIM"}
"""Files of the report that go in beside its tables."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A study, and what its files do not know."""

    stored: Stored
    study_file: Path
    dataset_file: Path
    dataset: Dataset
    author: str | None = None
    orcid: str | None = None
    licence: str | None = None
    weights: bool = False
    """Whether the weights of each training go in."""


def write_crate(request: Request, output: Path) -> None:
    """Writes the crate as a new folder.

    Raises:
        UserError: a package or a file is missing, or a run was trained by another plan than that of its setting.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UserError(
            "it needs the package rocrate: pip install 'megavoxel[crate]', or pip install rocrate"
        ) from None
    _require_finished(request)
    with atomic_directory(output) as folder:
        _Crate(request, ROCrate(version=VERSION)).crate.write(folder)


def _require_finished(request: Request) -> None:
    stored = request.stored
    if not (SOURCE / "Snakefile").is_file():
        raise UserError(
            f"{SOURCE / 'Snakefile'}: there is no such file; run 'megavoxel crate' from a checkout's package"
        )
    for setting, plan in stored.plans.items():
        path = stored.results / setting / "plan.json"
        if (plan.study, plan.dataset) != (stored.definition.study, request.dataset.name):
            raise UserError(
                f"{path}: it is of study {plan.study} with dataset {plan.dataset}, and {request.study_file} of study "
                f"{stored.definition.study} with dataset {request.dataset.name}; name the file of this study by --study"
            )
        for fold in stored.definition.folds[setting]:
            if fold not in stored.manifests.get(setting, {}):
                raise UserError(f"{path.parent / f'fold-{fold}/manifest.json'}: missing; train this fold again")
    for line in other_plans(stored):
        raise UserError(line)
    for name in ("splits.json", *(f"report/{file}" for file in REPORT)):
        if not (stored.results / name).is_file():
            raise UserError(f"{stored.results / name}: missing; finish the study by 'snakemake'")


class _Crate:
    """A crate as it is filled."""

    def __init__(self, request: Request, crate: Any) -> None:
        self.request, self.stored, self.crate = request, request.stored, crate
        self.author = self._person()
        self._root()
        workflow, inputs = self._workflow(), self._inputs()
        plans = {setting: self._result(f"{setting}/plan.json", "plan") for setting in self.stored.plans}
        splits = self._result("splits.json", "cases of each fold")
        made = [*plans.values(), splits]
        for setting, manifests in self.stored.manifests.items():
            for fold, manifest in manifests.items():
                made += self._training(setting, fold, manifest, [plans[setting], splits, *inputs])
        made += self._scores()
        self._parameters(workflow, inputs, made)
        name = self.stored.definition.study
        self._act(workflow, f"Study {name}", f"Run of the workflow for study {name}.", inputs, made)

    def _add(self, identifier: str, kind: str | list[str], **properties: Any) -> Any:
        from rocrate.model.contextentity import ContextEntity

        return self.crate.add(ContextEntity(self.crate, identifier, properties={"@type": kind, **properties}))

    def _person(self) -> Any:
        request = self.request
        if not request.author:
            return None
        return self._add(request.orcid or "#author", "Person", name=request.author)

    def _root(self) -> None:
        root, definition = self.crate.root_dataset, self.stored.definition
        root["name"] = f"Study {definition.study} on {definition.dataset}"
        root["description"] = (
            f"Plans, records of trainings, scores and report of the megavoxel study {definition.study}: "
            f"{', '.join(definition.models)}."
        )
        root["license"] = self.request.licence or "to be stated by the authors"
        if (self.request.licence or "").startswith("https://"):
            root["license"] = self._add(
                self.request.licence, "CreativeWork", name=self.request.licence, description="Licence of this crate."
            )
        if self.author:
            root["author"] = self.author
        for identifier, (name, version) in PROFILES.items():
            root.append_to("conformsTo", self._add(identifier, "CreativeWork", name=name, version=version))

    def _workflow(self) -> Any:
        commit = code_commit()
        properties = {
            "name": "megavoxel",
            "version": " ".join(filter(None, [megavoxel.__version__, commit])),
            "license": "https://spdx.org/licenses/Apache-2.0",
            "encodingFormat": "text/plain",
            "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
        }
        main = self.crate.add_workflow(
            SOURCE / "Snakefile", "Snakefile", main=True, lang="snakemake", properties=properties
        )
        for rules in sorted((SOURCE / "workflow/rules").glob("*.smk")):
            part = self._file(rules, f"workflow/rules/{rules.name}", "rules of the workflow")
            main.append_to("hasPart", part)
        return main

    def _file(self, source: Path, place: str, name: str) -> Any:
        properties = {"name": name, "encodingFormat": MEDIA.get(source.suffix, "text/plain")}
        return self.crate.add_file(source, place, properties=properties, record_size=True)

    def _result(self, place: str, name: str) -> Any:
        return self._file(self.stored.results / place, f"results/{place}", name)

    def _inputs(self) -> list[Any]:
        """The study file, the dataset file, and the dataset, which is not in the crate."""
        request, dataset = self.request, self.request.dataset
        study = self._file(request.study_file, f"config/studies/{self.stored.definition.study}.yaml", "study file")
        file = self._file(request.dataset_file, f"config/datasets/{dataset.name}.yaml", "dataset file")
        known = {"description": dataset.description, "citation": dataset.reference, "license": dataset.licence}
        sums = {
            manifest.get("data", {}).get("checksums_sha256")
            for own in self.stored.manifests.values()
            for manifest in own.values()
        } - {None}
        if sums:
            known["identifier"] = [f"sha256:{digest}" for digest in sorted(sums)]
        images = self._add(
            "#dataset", "CreativeWork", name=dataset.name, **{key: value for key, value in known.items() if value}
        )
        return [study, file, images]

    def _training(self, setting: str, fold: int, manifest: Mapping[str, Any], given: list[Any]) -> list[Any]:
        """A training and the files that it wrote."""
        files = {"history.csv": "training curves", "manifest.json": "record of a training"}
        files |= {"model.pt": "weights"} if self.request.weights else {}
        made = [
            self._result(f"{setting}/fold-{fold}/{file}", f"{name}: {setting}, fold {fold}")
            for file, name in files.items()
        ]
        facts = [
            (key, value) for key, value in flattened(dict(manifest)) if key.startswith(FACTS) and value is not None
        ]
        action = self._act(
            self._software(manifest),
            f"Training of {setting}, fold {fold}",
            "; ".join(f"{key}: {value}" for key, value in facts) or "A training.",
            given,
            made,
        )
        if "written" in manifest:
            action["endTime"] = manifest["written"]
        return made

    def _software(self, manifest: Mapping[str, Any]) -> Any:
        """megavoxel as it ran, with the packages it ran on: one entity for all trainings that had the same."""
        code, versions = manifest.get("code") or {}, manifest.get("versions") or {}
        identifier = f"#megavoxel-{content_hash([code, versions])}"
        known = self.crate.dereference(identifier)
        if known is not None:
            return known
        version = " ".join(filter(None, [code.get("version"), code.get("commit")]))
        needed = [self._package(name, version) for name, version in versions.items()]
        return self._add(
            identifier,
            "SoftwareApplication",
            name="megavoxel",
            softwareRequirements=needed,
            **({"softwareVersion": version} if version else {}),
        )

    def _package(self, name: str, version: str) -> Any:
        identifier = f"#{name}-{version}"
        home = {"url": HOMES[name]} if name in HOMES else {}
        return self.crate.dereference(identifier) or self._add(
            identifier, "SoftwareApplication", name=name, softwareVersion=version, **home
        )

    def _scores(self) -> Iterator[Any]:
        yield self._result("scores.csv", "scores of each case")
        for file, name in REPORT.items():
            yield self._result(f"report/{file}", name)
        for table in sorted((self.stored.results / "report/tables").glob("*.csv")):
            yield self._result(f"report/tables/{table.name}", f"table of the report: {table.stem}")

    def _act(self, instrument: Any, name: str, description: str, given: list[Any], made: list[Any]) -> Any:
        properties = {"name": name, "description": description}
        action = self.crate.add_action(
            instrument, identifier=f"#{content_hash(name)}", object=given, result=made, properties=properties
        )
        action["actionStatus"] = "http://schema.org/CompletedActionStatus"
        if self.author:
            action["agent"] = self.author
        self.crate.root_dataset.append_to("mentions", action)
        return action

    def _parameters(self, workflow: Any, inputs: list[Any], made: list[Any]) -> None:
        """The workflow's own inputs and outputs, each with the file that was given or made."""
        scores = next(entity for entity in made if entity.id == "results/scores.csv")
        workflow["input"] = [self._parameter("study", inputs[0]), self._parameter("dataset", inputs[1])]
        workflow["output"] = self._parameter("scores", scores)

    def _parameter(self, name: str, entity: Any) -> Any:
        identifier = f"#parameter-{name}"
        parameter = self.crate.add_formal_parameter(name, "File", identifier=identifier, valueRequired=True)
        parameter["workExample"] = entity
        entity["exampleOfWork"] = parameter
        return parameter
