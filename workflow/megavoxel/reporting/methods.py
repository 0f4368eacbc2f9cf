"""A draft of a paper's section on methods, from plans, manifests and scores: what they do not know is not in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.files import write_text
from megavoxel.reporting.claim import claim_checklist, each_setting, stated_values, times
from megavoxel.reporting.notices import findings_of
from megavoxel.reporting.references import bibliography, cited, used_references
from megavoxel.reporting.statistics import RESAMPLES
from megavoxel.reporting.stored import Stored, StoredClassification
from megavoxel.reporting.tables import markdown

METHODS, REFERENCES, CLAIM = "methods.md", "references.bib", "claim.md"
SCHEMES = {
    "ct": "clipped to the 0.5 and 99.5 percentiles of the foreground of the training cases and normalised by its mean "
    "and standard deviation",
    "z-score": "normalised by the mean and standard deviation of each image",
    "rescale-0-1": "brought to 0 to 1 image by image",
    "rgb-0-1": "divided by 255",
    "unchanged": "left as they were",
    "range": "clipped to a fixed range and brought to 0 to 1",
}
"""What becomes of intensities, by scheme of normalisation."""
LOSSES = {"dice_ce": "the sum of Dice loss and cross-entropy", "dice_focal": "the sum of Dice loss and focal loss"}
"""Losses in words; others are told by the names of their keys."""
ABOUT_CLAIM = (
    "Items of CLAIM (Mongan, Moy and Kahn 2020, Radiology: Artificial Intelligence 2:e200029). Sections are those of "
    "the report's page."
)
TO_ADD = (
    "To be added by the authors: where the data come from and how they were chosen and annotated, ethics, and the "
    "clinical question."
)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """Paragraphs of a text."""

    stored: Stored
    markdown: bool
    """Whether citations are keys of `references.bib`, as in Pandoc's Markdown, and not authors and years."""
    used: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "used", used_references(self.stored))

    def cite(self, *keys: str) -> str:
        """A citation of those keys that the study has used, with a space before it."""
        return cited(keys, self.used, markdown=self.markdown)

    def paragraphs(self) -> dict[str, str]:
        """Each by its heading."""
        tell = {"Data": self._data, "Software and hardware": self._tools}
        if isinstance(self.stored, StoredClassification):
            tell = {"Data": self._data, "Networks and training": self._classifiers, "Evaluation": self._accuracy} | tell
        else:
            told = {"Preprocessing": self._preprocessing, "Networks": self._networks, "Training": self._training}
            tell = {"Data": self._data, **told, "Inference": self._inference, "Evaluation": self._evaluation} | tell
        return {heading: _sentence(write()) for heading, write in tell.items()}

    def _each(self, tell: Callable[[Stored, str], str]) -> str:
        return each_setting(self.stored, tell)

    def _data(self) -> str:
        stored = self.stored
        count = "" if stored.cases is None else f" ({len(stored.cases.cases)} cases)"
        folds = sorted({fold for own in stored.histories.values() for fold in own})
        seeds = " and ".join(map(str, dict.fromkeys(plan.seed for plan in stored.plans.values())))
        text = f"We used the dataset {stored.definition.dataset}{count}."
        if stored.definition.validates:
            groups = ", cases of a group staying together" if stored.groups else ""
            text += (
                f" Training cases were divided into folds for cross-validation (splits.json, seed {seeds}){groups}; "
            )
            text += f"networks were trained on {len(folds)} fold{'s' if len(folds) > 1 else ''}."
        if "test" in stored.splits:
            tested = stored.scores[stored.scores["split"] == "test"]["case"].nunique()
            text += f" {tested} test cases were seen by no network."
        return text

    def _preprocessing(self) -> str:
        def of_setting(stored: Stored, setting: str) -> str:
            plan = stored.plans[setting].preprocessing
            kinds = [plan.normalisation, *plan.normalisation_by_modality.values()]
            schemes = dict.fromkeys(SCHEMES[channel.scheme] for kind in kinds for channel in kind)
            return f"resampled to a spacing of {plan.shown_spacing} mm, and their intensities {' or '.join(schemes)}"

        cropped = f"As in nnU-Net{self.cite('isensee2021nnunet')}, images were cropped to what is not zero"
        return f"{cropped}, then {self._each(of_setting)}."

    def _networks(self) -> str:
        def of_setting(stored: Stored, setting: str) -> str:
            plan, network = stored.plans[setting], stored.plans[setting].network
            kind = "U-Net with a residual encoder" if network.architecture == "residual" else "U-Net"
            dimensions = f"{plan.preprocessing.dimensions}D "
            text = f"a {dimensions}{kind}{self.cite('isensee2024revisited') if network.blocks else ''} of "
            text += f"{len(network.features)} levels with {network.features[0]} to {max(network.features)} channels, "
            text += f"on patches of {times(plan.patch)} voxels in batches of {plan.batch}"
            if plan.expanded_patch is not None:
                text += f", within expanded patches of {times(plan.expanded_patch)} voxels{self.cite('wang2022meunet')}"
            if plan.stage1:
                text += f", given the label maps of {' and '.join(plan.stage1)}"
            return text

        return (
            f"{self._each(of_setting)}.".capitalize() if len(self.stored.plans) == 1 else f"{self._each(of_setting)}."
        )

    def _training(self) -> str:
        def of_setting(stored: Stored, setting: str) -> str:
            plan, training = stored.plans[setting], stored.plans[setting].training
            loss = LOSSES.get(training.loss, training.loss)
            text = f"{loss}{self.cite('lin2017focal') if training.loss == 'dice_focal' else ''} was minimised by "
            text += f"{training.optimizer}{self._of_optimizer(training.optimizer)} with a learning rate of "
            text += f"{training.learning_rate:g} (schedule: {training.schedule}) in "
            text += f"{training.epochs} epochs of {training.iterations_per_epoch} steps"
            if plan.phases:
                text += f", behind {len(plan.phases) - 1} phases of other patches{self.cite('zhu2020lamp')}"
            if plan.parallel.pipeline > 1:
                keys = ("huang2019gpipe", "zhu2020lamp")
                text += f", through a pipeline of {plan.parallel.pipeline} devices{self.cite(*keys)}"
            if plan.parallel.checkpointing != "none":
                text += f", with activations computed again in the backward pass{self.cite('chen2016sublinear')}"
            return text

        return f"{self._each(of_setting)}. The weights of the last epoch were taken."

    def _of_optimizer(self, name: str) -> str:
        keys = {"adam": "kingma2015adam", "adamw": "loshchilov2019adamw"}
        return self.cite(keys[name]) if name in keys else ""

    def _inference(self) -> str:
        def of_setting(stored: Stored, setting: str) -> str:
            plan = stored.plans[setting]
            mirrored = plan.inference.mirror and plan.augmentation.mirror_axes
            window = plan.inference.window
            kind = (
                "of the patch's size"
                if window is None
                else window
                if window == "whole"
                else f"of {times(window)} voxels"
            )
            text = f"windows {kind} with a step of {plan.inference.step:g} of their size"
            return f"{text}, averaged over mirror images" if mirrored else text

        text = f"Prediction went by {self._each(of_setting)}."
        if "test" in self.stored.splits:
            text += " Test cases were predicted by the mean logits of all folds"
            text += f", of which the largest component was kept of {kept}." if (kept := self._kept()) else "."
        ensembles = [f"{name} ({' and '.join(own)})" for name, own in self.stored.definition.ensembles.items()]
        text += f" Probabilities were averaged in the ensembles {', '.join(ensembles)}." if ensembles else ""
        if self.stored.definition.confidence:
            text += " A temperature for each setting was chosen by the likelihood of validation cases"
            text += f"{self.cite('guo2017calibration')}."
        return text

    def _kept(self) -> str:
        """What post-processing cuts to its largest component, by model; empty where that is nothing."""
        found = {}
        for model in self.stored.definition.models:
            path = self.stored.folder(model) / "postprocessing.json"
            keep = load_postprocessing(path).keep_largest if path.is_file() else None
            if keep is not None and (keep.foreground or keep.labels):
                found[model] = " and ".join([*(["the whole foreground"] if keep.foreground else []), *keep.labels])
        return "; ".join(f"{kept} ({model})" for model, kept in found.items())

    def _evaluation(self) -> str:
        keys = {
            "dsc": "dice1945", "nsd": "nikolov2021", "cldice": "shit2021cldice", "pq": "kirillov2019panoptic",
            "boundary_iou": "cheng2021boundary",
        }  # fmt: skip
        named = [
            metric.shown + (self.cite(keys[metric.key]) if metric.key in keys else "") for metric in self.stored.metrics
        ]
        units = "groups of cases" if self.stored.groups else "cases"
        text = f"Label maps were compared with the reference by {', '.join(named)}{self._tolerance()}. Means are over "
        text += "cases, within which the mean over labels is taken first, with 95 % percentile bootstrap intervals "
        text += f"({RESAMPLES} resamples of {units})."
        if len(self.stored.definition.models) > 1:
            text += f" Paired differences were tested by Wilcoxon's signed-rank test{self.cite('wilcoxon1945')}, "
            text += f"corrected by Holm's method{self.cite('holm1979')}; ranks were bootstrapped"
            text += f"{self.cite('wiesenfarth2021')}."
        return text

    def _tolerance(self) -> str:
        limits = sorted(set(self.stored.tolerances.values()))
        if not limits or all(metric.key != "nsd" for metric in self.stored.metrics):
            return ""
        return f" (tolerance of NSD: {' to '.join(f'{limit:g}' for limit in limits[:: max(1, len(limits) - 1)])} mm)"

    def _classifiers(self) -> str:
        networks = {"resnet50": "he2016resnet", "densenet169": "huang2017densenet", "vgg16": "simonyan2015vgg"}

        def of_setting(stored: Stored, setting: str) -> str:
            plan = stored.plans[setting]
            cite = self.cite(networks[plan.network]) if plan.network in networks else ""
            text = (
                f"{plan.network}{cite} on images of {plan.resolution} × {plan.resolution} pixels, batch {plan.batch}, "
            )
            text += (
                f"{plan.training.optimizer}{self._of_optimizer(plan.training.optimizer)}, {plan.training.epochs} epochs"
            )
            if plan.workers > 1:
                text += f", {plan.workers} workers ({plan.data_partition}){self.cite('pandit2021')}"
            return f"{text}, beginning with weights of ImageNet" if plan.pretrained else text

        return f"{self._each(of_setting)}."

    def _accuracy(self) -> str:
        return f"Scores have 95 % percentile bootstrap intervals ({RESAMPLES} resamples of patients)."

    def _tools(self) -> str:
        stored = self.stored
        programs = {
            "megavoxel": ("code.version", ""), "Python": ("versions.python", ""),
            "PyTorch": ("versions.torch", "paszke2019pytorch"), "MONAI": ("versions.monai", "cardoso2022monai"),
            "Snakemake": ("versions.snakemake", "moelder2021snakemake"),
        }  # fmt: skip
        named = [
            " ".join([name, *([" and ".join(versions)] if (versions := stated_values(stored, entry)) else [])])
            + self.cite(key)
            for name, (entry, key) in programs.items()
            if not key or key in self.used
        ]
        hours = sum(history["seconds"].sum() for own in stored.histories.values() for history in own.values()) / 3600
        devices = stated_values(stored, "hardware.gpu") or stated_values(stored, "hardware.processor")
        place = f" on {devices[0]}" if len(devices) == 1 else ""
        return f"All was run with {', '.join(named)}. All trainings together took {hours:.3g} h{place}."


def _sentence(text: str) -> str:
    """A text that begins with a capital, unless it begins with the name of a setting."""
    return text if ":" in text.split(" ", 1)[0] else text[:1].upper() + text[1:]


def write_methods(stored: Stored, folder: Path) -> None:
    """Writes `methods.md`, `references.bib` and `claim.md`."""
    methods = Methods(stored=stored, markdown=True)
    parts = [f"**{heading}.** {text}" for heading, text in methods.paragraphs().items()]
    write_text(folder / METHODS, "\n\n".join([*parts, f"*{TO_ADD}*"]) + "\n")
    write_text(folder / REFERENCES, bibliography(methods.used))
    checklist = markdown(claim_checklist(stored, findings_of(stored)))
    write_text(folder / CLAIM, f"{ABOUT_CLAIM}\n\n{checklist.rstrip()}\n")
