"""The model card: what a reader has to know of a model before using it, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from megavoxel.evaluation.metrics import Metric, metrics_in
from megavoxel.models.description import Mean, ModelDescription
from megavoxel.planning.plan import Plan

SPLITS = {
    "validation": "Cross-validation: each case was labelled by the one network that did not see it, without "
    "post-processing.",
    "test": "Test cases, seen by no network: labelled by the mean of all folds, then post-processed.",
}
INTENDED_USE = "Research. It is no medical device, and nobody has shown that it is fit for clinical decisions."
NOT_STATED = "not stated"


def model_card(model: ModelDescription, plan: Plan, usage: str) -> str:
    """The card of a model.

    Args:
        model: what is known of it.
        plan: of its setting.
        usage: how it is run, in Markdown.
    """
    sections = [
        f"# {model.name}",
        f"Segments {', '.join(model.labels)} in {_input(model)}. Made by megavoxel {_versions(model)}.",
        f"**Intended use.** {INTENDED_USE}",
        "## Use",
        usage,
        "## Input and output",
        _format(model, plan),
        "## Training",
        _training(model),
        "## Scores",
        *_scores(model.scores),
    ]
    return "\n\n".join(sections) + "\n"


def _input(model: ModelDescription) -> str:
    kinds = f" ({' or '.join(model.modalities)})" if model.modalities else ""
    return f"3D scans with the channel{'s' if len(model.channels) > 1 else ''} {', '.join(model.channels)}{kinds}"


def _versions(model: ModelDescription) -> str:
    return " and ".join(sorted({fold.version for fold in model.folds}))


def _format(model: ModelDescription, plan: Plan) -> str:
    spacing = " × ".join(f"{size:g}" for size in plan.preprocessing.spacing)
    window = plan.inference.window or plan.patch
    rows = [
        ("Channels", ", ".join(model.channels)),
        ("Modalities", ", ".join(model.modalities) or "one kind"),
        ("Labels", ", ".join(f"{value} {name}" for name, value in model.labels.items())),
        ("Spacing of the network", f"{spacing} mm; scans of any spacing and orientation are brought there and back"),
        ("Window", window if isinstance(window, str) else " × ".join(map(str, window)) + " voxels"),
        ("Networks", f"{len(model.folds)}, whose logits are averaged; {model.folds[0].parameters:,} weights each"),
        ("Post-processing", "largest components are kept" if model.postprocessed else "none"),
    ]
    return _table(("", ""), rows)


def _training(model: ModelDescription) -> str:
    dataset = model.dataset
    rows = [
        ("Dataset", f"{dataset.name}. {dataset.description}".strip()),
        ("Licence of the data", dataset.licence or NOT_STATED),
        ("Reference", dataset.reference or NOT_STATED),
        ("Authors of the model", model.authors or NOT_STATED),
        ("Study and setting", f"{model.study}, {model.setting}"),
    ]
    folds = [
        (
            fold.fold, fold.training_cases, fold.validation_cases, fold.epochs, f"{fold.hours:.2f}", fold.seed,
            fold.precision, fold.hardware,
        )
        for fold in model.folds
    ]  # fmt: skip
    names = ("fold", "training cases", "validation cases", "epochs", "hours", "seed", "precision", "hardware")
    packages = ", ".join(f"{name} {version}" for name, version in model.folds[0].versions.items())
    return "\n\n".join([_table(("", ""), rows), _table(names, folds), f"Versions: {packages}."])


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
