"""What a model says of itself: `model.json` for programs, and a card for readers.

Both say what the model takes and gives, on what it was trained and with what, and how good it was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from megavoxel import __version__
from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.regions import Regions, structures_of
from megavoxel.errors import UserError, expect
from megavoxel.evaluation.metrics import Metric, metrics_in
from megavoxel.files import file_sha256, read_json, write_json
from megavoxel.inference.run_times import run_time_of
from megavoxel.planning.plan import Plan

FORMAT = 1
"""Number of the format of model.json; files of another format are refused."""
SPLITS = {
    "validation": "Cross-validation: each case was labelled by the one network that did not see it, without "
    "post-processing.",
    "test": "Test cases, seen by no network: labelled by the mean of all folds, then post-processed.",
}
INTENDED_USE = "Research. It is no medical device, and nobody has shown that it is fit for clinical decisions."
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The data of the training, as its dataset file has them; empty where that says nothing."""

    name: str
    description: str = ""
    licence: str = ""
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """One network."""

    fold: int | Literal["all"]
    """`all`: it was trained on all cases."""
    weights: str
    """Its file."""
    training_cases: int
    validation_cases: int
    """Cases that it did not see, by which it was scored."""
    epochs: int
    hours: float | None
    """Hours of training; None: not known."""
    seed: int | None
    """None: not known."""
    precision: str
    parameters: int
    data_sha256: str | None
    """SHA-256 of the file with the dataset's checksums."""
    hardware: str
    version: str
    """Version of megavoxel."""
    commit: str | None
    """Commit of its source."""
    versions: dict[str, str]
    """Versions of the packages that shape results, by name."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of scores."""

    split: str
    """`validation` or `test`."""
    label: str | None
    """None: the mean over labels was taken first, within each case."""
    metric: str
    """Its name, such as DSC (`megavoxel.evaluation.metrics`)."""
    mean: float
    cases: int
    """Number of cases that have a value."""
    tolerance_mm: float | None = None
    """Tolerance of the metric, if it takes one and all averaged values have the same."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model to take away."""

    format: int = FORMAT
    name: str
    study: str
    setting: str
    channels: tuple[str, ...]
    modalities: tuple[str, ...] = ()
    """Where the dataset has several in one channel."""
    labels: dict[str, int]
    """Values in label maps by name."""
    regions: Regions | None = None
    """What the model segments, where that is regions that may overlap; None: the labels."""
    dataset: DatasetFacts
    folds: tuple[FoldFacts, ...]
    scores: tuple[Mean, ...] = ()
    postprocessed: bool = False
    """Whether largest components are kept."""
    authors: str = ""
    origin: str = ""
    """What trained it, where that was not megavoxel."""
    sha256: dict[str, str]
    """SHA-256 of the other files of the model, by name."""
    first_stage: dict[str, str] = field(default_factory=dict)
    """Settings whose label maps the networks of a cascade are given, each a model in `first_stage/SETTING`, with the
    SHA-256 of its model.json."""
    members: dict[str, str] = field(default_factory=dict)
    """Settings of an ensemble, which has no folds of its own: each a model in `members/SETTING`, in the same way."""

    @property
    def segmented(self) -> tuple[str, ...]:
        """Names of the regions or labels that it segments."""
        return tuple(structures_of(self.labels, self.regions))


def save_description(path: Path, description: ModelDescription) -> None:
    """Writes `model.json`."""
    write_json(path, to_plain(description))


def load_description(path: Path) -> ModelDescription:
    """Reads `model.json`.

    Raises:
        UserError: the file is missing, of another format, or not what `megavoxel export` writes.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file, so {path.parent} is no model; name a folder that 'megavoxel export' wrote"
        )
    values = read_json(path, what="description of a model")
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {values.get('format')}, and this version of megavoxel reads {FORMAT}; take the version "
            "that the file names, or export the model again"
        )
    found = from_plain(ModelDescription, values, where=str(path))
    expect(bool(found.folds) != bool(found.members), f"{path}: folds", "one or more, or members in place of them")
    names = [*found.sha256, *(fold.weights for fold in found.folds), *found.first_stage, *found.members]
    for name in names:
        expect(Path(name).name == name != "..", f"{path}: sha256", "names of files beside it")
    return found


def require_as_exported(path: Path, description: ModelDescription, files: Iterable[Path]) -> None:
    """Holds files of a model to their checksums.

    Args:
        path: model.json, for the message.
        description: its content.
        files: what is going to be read of the model.

    Raises:
        UserError: one of them has no checksum, is missing, or is another file.
    """
    for file in files:
        expected = description.sha256.get(file.name)
        expect(expected is not None, f"{path}: sha256", f"a checksum of {file.name}, without which it is not read")
        require_unchanged(file, expected)


def require_unchanged(file: Path, sha256: str) -> None:
    """Holds a file of a model to its checksum.

    Raises:
        UserError: it is missing, or another file.
    """
    if not file.is_file() or file_sha256(file) != sha256:
        raise UserError(
            f"{file}: missing, damaged or changed since the export; copy the model again, or export it again by "
            "'megavoxel export'"
        )


def model_card(model: ModelDescription, plan: Plan, usage: str) -> str:
    """The card of a model.

    Args:
        usage: how it is run, in Markdown.
    """
    sections = [
        f"# {model.name}",
        f"Segments {', '.join(model.segmented)} in {_input(model)}. {_maker(model)}",
        f"**Intended use.** {INTENDED_USE}",
        "## Use",
        usage,
        *_parts(model),
        "## The program that reads it",
        program_text(model),
        "## Input and output",
        _format(model, plan),
        "## Training",
        _training(model),
        "## Scores",
        *_scores(model.scores),
    ]
    return "\n\n".join(sections) + "\n"


def program_text(model: ModelDescription) -> str:
    """How a reader of a model gets the program for it, in Markdown."""
    run_time = run_time_of(model.folds[0].weights) if model.folds else None
    commits = " or ".join(sorted({fold.commit[:12] for fold in model.folds if fold.commit}))
    source = f"a checkout{f' of commit {commits}' if commits else ''}"
    wheel = f"megavoxel-{__version__}-py3-none-any.whl"
    needed = f"'{wheel}[{run_time.extra}]'" if run_time else wheel
    return (
        f"megavoxel {__version__}, for Python 3.11 to 3.13. `python -m pip wheel --no-deps .` in {source} makes the "
        f"wheel `{wheel}`, or whoever made the model has it. On the machine with the scans:\n\n"
        f"    python3 -m venv megavoxel\n    megavoxel/bin/pip install {needed}\n"
        "    megavoxel/bin/megavoxel predict --help\n\n"
        f"or, without installing it, `pipx run --spec {needed} megavoxel predict …`. Where there is no GPU, "
        "`--extra-index-url https://download.pytorch.org/whl/cpu` takes a small build of PyTorch."
    )


def _parts(model: ModelDescription) -> list[str]:
    if model.members:
        names = [f"[{name}](members/{name}/README.md)" for name in model.members]
        return [
            f"An ensemble of {', '.join(names)}, in this directory. `megavoxel predict` runs all of them and averages "
            "their probabilities, each after its own post-processing."
        ]
    if not model.first_stage:
        return []
    names = [f"[{name}](first_stage/{name}/README.md)" for name in model.first_stage]
    return [
        "The networks are the second stage of a cascade. They are given the label maps of "
        f"{' and '.join(names)}, in this directory. `megavoxel predict` runs both stages."
    ]


def _regions(regions: Regions) -> str:
    pairs = zip(regions.values.items(), regions.class_order, strict=True)
    shown = [f"{name}: {' and '.join(map(str, values))}, written as {own}" for (name, values), own in pairs]
    return "; ".join(shown) + " unless a later one is present"


def _input(model: ModelDescription) -> str:
    kinds = f" ({' or '.join(model.modalities)})" if model.modalities else ""
    return f"3D scans with the channel{'s' if len(model.channels) > 1 else ''} {', '.join(model.channels)}{kinds}"


def _maker(model: ModelDescription) -> str:
    if model.origin:
        return f"Trained by {model.origin}; brought to this form by megavoxel {_versions(model)}."
    return f"Made by megavoxel {_versions(model)}."


def _versions(model: ModelDescription) -> str:
    return " and ".join(sorted({fold.version for fold in model.folds})) or __version__


def _format(model: ModelDescription, plan: Plan) -> str:
    rows = [
        ("Channels", ", ".join(model.channels)),
        ("Modalities", ", ".join(model.modalities) or "one kind"),
        ("Labels", ", ".join(f"{value} {name}" for name, value in model.labels.items())),
        *([] if model.regions is None else [("Regions", _regions(model.regions))]),
        ("Post-processing", "largest components are kept" if model.postprocessed else "none"),
        *(_networks(model, plan) if model.folds else []),
    ]
    return _table(("", ""), rows)


def _networks(model: ModelDescription, plan: Plan) -> list[tuple[str, str]]:
    spacing = plan.preprocessing.shown_spacing
    window = plan.inference.window or plan.patch
    return [
        ("Spacing of the network", f"{spacing} mm; scans of any spacing and orientation are brought there and back"),
        ("Window", window if isinstance(window, str) else " × ".join(map(str, window)) + " voxels"),
        ("Files of networks", run_time.format if (run_time := run_time_of(model.folds[0].weights)) else "PyTorch"),
        ("Networks", f"{len(model.folds)}, whose logits are averaged; {model.folds[0].parameters:,} weights each"),
    ]


def _training(model: ModelDescription) -> str:
    dataset = model.dataset
    rows = [
        ("Dataset", f"{dataset.name}. {dataset.description}".strip()),
        ("Licence of the data", dataset.licence or NOT_STATED),
        ("Reference", dataset.reference or NOT_STATED),
        ("Authors of the model", model.authors or NOT_STATED),
        ("Study and setting", f"{model.study}, {model.setting}"),
    ]
    if not model.folds:
        return _table(("", ""), rows)
    folds = [
        (
            fold.fold, fold.training_cases, fold.validation_cases, fold.epochs,
            NOT_STATED if fold.hours is None else f"{fold.hours:.2f}", NOT_STATED if fold.seed is None else fold.seed,
            fold.precision, fold.hardware,
        )
        for fold in model.folds
    ]  # fmt: skip
    names = ("fold", "training cases", "validation cases", "epochs", "hours", "seed", "precision", "hardware")
    packages = ", ".join(f"{name} {version}" for name, version in model.folds[0].versions.items())
    versions = [f"Versions: {packages}."] if packages else []
    return "\n\n".join([_table(("", ""), rows), _table(names, folds), *versions])


def _scores(scores: Sequence[Mean]) -> list[str]:
    if not scores:
        return ["This model was not scored before it was exported."]
    parts = []
    for split, explained in SPLITS.items():
        own = [mean for mean in scores if mean.split == split]
        if own:
            metrics = metrics_in(mean.metric for mean in own)
            tolerances = [f"{metric.shown} tolerance" for metric in metrics if metric.takes_tolerance]
            heads = ("label", *(metric.head for metric in metrics), *tolerances, "cases")
            parts += [explained, _table(heads, _score_rows(own, metrics))]
    return [*parts, "Means over cases; in the row of all labels the mean over labels is taken first, within each case."]


def _score_rows(means: Sequence[Mean], metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    rows = []
    for label in dict.fromkeys(mean.label for mean in means):
        of = {mean.metric: mean for mean in means if mean.label == label}
        values = [f"{of[metric.name].mean:.3f}" if metric.name in of else "" for metric in metrics]
        tolerances = [
            of[metric.name].tolerance_mm for metric in metrics if metric.takes_tolerance and metric.name in of
        ]
        shown = ["by label" if tolerance is None else f"{tolerance:g} mm" for tolerance in tolerances]
        cases = sorted({str(mean.cases) for mean in of.values()})
        rows.append((label or "all", *values, *shown, " / ".join(cases)))
    return rows


def _table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    plain = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return tabulate(plain, headers=names, tablefmt="github", disable_numparse=True)
