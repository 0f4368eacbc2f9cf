# What makes jobs run again, beside their inputs: the part of the configuration that their stage reads, never its place or
# its words. No rules here. Parameters that a function of `wildcards` alone gives trigger jobs; those whose function asks
# for `output` do not.
from snakemake.io import IOFile

from megavoxel.config.parts import checked_part, fetched_part
from megavoxel.planning.shares import number_of_shares


def recorded(path):
    """What Snakemake wrote down when it made a file; None where it did not."""
    return workflow.persistence.metadata(IOFile(str(path)))


def word_of(path, kind, value, *, still):
    """A parameter, `kind` and a hash of `value`; the one that a file was made with where `still` says it is as good.

    Args:
        path: the file; where it is not there, nothing is as good.
        still: asked where the value is another one.
    """
    record = recorded(path) if os.path.exists(path) else None
    made_with = [word.strip("'") for word in (record.params if record else ()) if word.startswith(f"'{kind} ")]
    word = f"{kind} {content_hash(to_plain(value))}"
    return made_with[0] if made_with and word not in made_with and still() else word


def setting_of_plan(plan, *, for_prediction):
    """A parameter: what the study says of a setting; as before where the plan that it leads to is the same."""

    def word(wildcards):
        setting = SETTINGS[wildcards.setting]
        path = plan.format(setting=setting.name)
        said = {key: value for key, value in to_plain(setting).items() if key != "parallel"}
        return word_of(
            path,
            "setting",
            [said, STUDY.seed],
            still=lambda: is_planned_alike(
                Path(path),
                Path(f"{RESULTS}/cases.json"),
                Path(basis_of(setting.name)),
                PLANNED[setting.name],
                study=STUDY.name,
                seed=STUDY.seed,
                for_prediction=for_prediction,
            ),
        )

    return word


def spread_of_plan(plan):
    """A parameter: how a setting is spread over devices; as before where all that runs on devices is there."""

    def word(wildcards):
        setting = wildcards.setting
        spread = getattr(SETTINGS[setting], "parallel", None)
        return word_of(plan.format(setting=setting), "spread", spread, still=lambda: is_finished(setting))

    return word


def is_planned_alike(*files, **keys):
    """As the task says; imported when it is asked, because few studies need it."""
    if SEGMENTS:
        from megavoxel.tasks.segmentation.plan import is_planned_alike as alike
    else:
        from megavoxel.tasks.classification.plan import is_planned_alike as alike
    return alike(*files, **keys)


def is_finished(setting):
    """Whether all networks of a setting are trained, and all that they predict or are timed on is there."""
    folder, folds = f"{RESULTS}/{setting}", folds_of(setting)
    made = [f"{folder}/fold-{fold}/model.pt" for fold in folds]
    made += [f"{folder}/fold-{fold}/validation{PREDICTIONS}" for fold in folds if (setting, fold) in VALIDATED]
    made += [f"{folder}/fold-{fold}/timings.csv" for name, fold in timed_runs() if name == setting]
    return all(map(os.path.exists, [*made, f"{folder}/test-raw" if SEGMENTS else f"{folder}/test.csv"]))


def shares(output, part, splits):
    """Numbers of the jobs that share the cases of some splits, and how many there are.

    Args:
        output: what is made of their outputs; once it is there it keeps the number of jobs that made it.
        part: the output of such a job, up to its number.
    """
    record = recorded(output)
    made_of = [path for path in (record.input if record else ()) if path.startswith(part)]
    cases = Path(f"{RESULTS}/cases.json")
    total = len(made_of) or STUDY.shards or number_of_shares(cases, DATASET, splits)
    return {"share": range(total), "total": total}


def preprocessing_shares(preprocessing):
    """The jobs that share the cases of a preprocessing."""
    folder = f"{RESULTS}/preprocessed/{preprocessing}"
    return shares(f"{folder}/done.json", f"{folder}/shard-", ("training", "test"))


def test_parts(wildcards):
    """An input function: what each job made that predicts test cases of a setting."""
    part = f"{RESULTS}/{wildcards.setting}/test-part-"
    return expand(f"{part}{{share}}-of-{{total}}", **shares(f"{RESULTS}/{wildcards.setting}/test-raw", part, ("test",)))
