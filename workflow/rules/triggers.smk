# What makes jobs run again: the part of the configuration that their stage reads, never its place or its words. No rules
# here. Parameters that a function of `wildcards` alone gives trigger jobs; those whose function asks for `output` do not.
import math
from functools import cache

from snakemake.io import IOFile

WORDS_OF_DATASET = ("description", "licence", "reference")
CASES_PER_JOB, MOST_JOBS = 50, 2


def without(record, keys):
    """A record as one line of JSON, but for some of its keys."""
    return json.dumps({key: value for key, value in to_plain(record).items() if key not in keys}, sort_keys=True)


def fetched_part(wildcards):
    """What `fetch` reads of the dataset: its source, and how that is cut or merged where it is."""
    if DATASET.patients:
        order = list(DATASET.patients.masks)
        return as_json([DATASET.source, DATASET.patients, order, DATASET.labels, list(DATASET.exclude)])
    described = DATASET.blocks or DATASET.files
    return as_json([DATASET.source, described] if described else DATASET.source)


def checked_part(wildcards):
    """What `check` reads of the dataset: tolerances are only for scores."""
    return without(DATASET, (*WORDS_OF_DATASET, "source", "declared", "nsd_tolerance_mm"))


def tolerance_option(wildcards):
    """What `evaluate` is told of the tolerances of NSD."""
    if not SEGMENTS:
        return ""
    tolerances = DATASET.nsd_tolerance_mm
    words = [f"{name}={mm}" for name, mm in tolerances.items()] if isinstance(tolerances, dict) else [str(tolerances)]
    return f"--nsd-tolerance {shlex.join(words)}"


def recorded_tolerances_option(wildcards, output):
    """What the collection of scores is told of these tolerances, and where to record them."""
    return f"{tolerance_option(wildcards)} --tolerances {shlex.quote(output.tolerances)}" if SEGMENTS else ""


def planned_for_training(wildcards):
    """Hash of what training reads of its plan; empty before one can be made."""
    plan = plan_of(wildcards.setting, TRAINING_PLAN)
    return "" if plan is None else content_hash([plan.hash, spread_of(wildcards.setting)])


def planned_for_prediction(wildcards):
    """Hash of what training or prediction reads of its plan; empty before one can be made."""
    plan = plan_of(wildcards.setting, PLAN)
    return "" if plan is None else content_hash([plan.prediction_hash, spread_of(wildcards.setting)])


def spread_of(setting):
    """What the study says of the devices of a setting; of a classifier that is in its plan."""
    return to_plain(SETTINGS[setting].parallel) if SEGMENTS else None


def recorded(path):
    """What Snakemake wrote down when it made a file; None where it did not."""
    return workflow.persistence.metadata(IOFile(str(path)))


def plan_of(setting, pattern):
    """The plan of a setting: that of the file, or the one that will be made where the study was edited since.

    It does not depend on the device, so that a plan stays where only the hardware file changes.
    """
    path = Path(pattern.format(setting=setting))
    record = recorded(path) if path.is_file() else None
    edited = record is not None and not all(f" {word} " in (record.shellcmd or "") for word in described(setting))
    read = [path] if path.is_file() and not edited else [Path(f"{RESULTS}/cases.json"), Path(basis_of(setting))]
    if not all(file.is_file() for file in read):
        return None
    return plan_from(setting, *((file, file.stat().st_mtime_ns) for file in read))


def described(setting):
    """The words by which `plan` is told of a setting."""
    return [f"--definition {shlex.quote(as_json(SETTINGS[setting]))}", f"--seed {STUDY.seed}"]


@cache
def plan_from(setting, *read):
    """The plan in a file of that time, or the one made of cases and basis of those times; None where there is an error."""
    # Imported here, because a study that is not planned yet does not need them.
    if SEGMENTS:
        from megavoxel.planning.plan import load_plan
        from megavoxel.tasks.segmentation.plan import foreseen
    else:
        from megavoxel.tasks.classification.plan import foreseen
        from megavoxel.tasks.classification.plan import load_classifier_plan as load_plan

    files = [file for file, _ in read]
    try:
        if len(files) == 1:
            return load_plan(files[0])
        return foreseen(*files, PLANNED[setting], study=STUDY.name, seed=STUDY.seed)
    except UserError:
        return None


def shares(output, part, splits):
    """Numbers of the jobs that share some cases, and how many there are.

    A finished output keeps the number that it was made of; else the study says it, or the number of cases.

    Args:
        output: what is made of their outputs.
        part: the output of such a job, up to its number.
        splits: of the cases: `training`, `test` or both.
    """
    record = recorded(output)
    made_of = [path for path in (record.input if record else ()) if path.startswith(part)]
    total = len(made_of) or STUDY.shards or max(1, min(MOST_JOBS, math.ceil(known_cases(splits) / CASES_PER_JOB)))
    return {"share": range(total), "total": total}


def known_cases(splits):
    """Cases of these splits: as checked or, before that, as the dataset file says; as many as need all jobs if it does not."""
    path, phantom = Path(f"{RESULTS}/cases.json"), DATASET.source.phantom
    if path.is_file():
        return sum(case["split"] in splits for case in json.loads(path.read_text())["cases"])
    if phantom is not None:
        return sum(
            count
            for name, count in (("training", phantom.training_cases), ("test", phantom.test_cases))
            if name in splits
        )
    return MOST_JOBS * CASES_PER_JOB


def preprocessing_shares(preprocessing):
    """The jobs that share the cases of a preprocessing."""
    folder = f"{RESULTS}/preprocessed/{preprocessing}"
    return shares(f"{folder}/done.json", f"{folder}/shard-", ("training", "test"))


def test_parts(wildcards):
    """An input function: what each job made that predicts test cases of a setting."""
    part = f"{RESULTS}/{wildcards.setting}/test-part-"
    return expand(f"{part}{{share}}-of-{{total}}", **shares(f"{RESULTS}/{wildcards.setting}/test-raw", part, ("test",)))
