# Tables, figures and the page.
REPORT = f"{RESULTS}/report"
FIGURES = [*[f"{metric}_by_label" for metric in STUDY.metrics], "training_curves"]
AGAINST = f"{REPORT}/figures/{STUDY.metrics[0]}_against"
# A paper's own numbers, where the study has some: config/published/STUDY.csv
PUBLISHED = [path for path in [CONFIG_FOLDER / "published" / f"{STUDY.name}.csv"] if path.is_file()]
DEFINITION = json.dumps(
    {
        "study": STUDY.name,
        "dataset": DATASET.name,
        "baseline": STUDY.baseline,
        "settings": list(SETTINGS),
        "ensembles": {name: list(ensemble.members) for name, ensemble in ENSEMBLES.items()},
        "folds": {model.removeprefix("ensembles/"): list(folds_of(model)) for model in MODELS},
        "cases": f"{RESULTS}/cases.json",
        "sweeps": to_plain(STUDY.sweeps),
        "metrics": list(STUDY.metrics),
    }
)


localrules:
    tables,
    partial_report,


rule report:
    """Everything a reader sees, beside the scores."""
    input:
        image=used(CPU_IMAGE),
        scores=rules.collect_scores.output.scores,
        cases=rules.check.output.cases,
        plans=expand(rules.plan_setting.output.plan, setting=SETTINGS),
        histories=[f"{RESULTS}/{setting}/fold-{fold}/history.csv" for setting, fold in RUNS],
        manifests=[f"{RESULTS}/{setting}/fold-{fold}/manifest.json" for setting, fold in RUNS],
        validation=[f"{RESULTS}/{model}/fold-{fold}/validation" for model in MODELS for fold in folds_of(model)],
        test=[f"{RESULTS}/{model}/test" for model in MODELS],
        timings=rules.collect_timings.output.timings if TIMINGS else [],
        published=PUBLISHED,
    output:
        page=report(f"{REPORT}/index.html", caption="../report/page.rst", category="Page"),
        summary=report(f"{REPORT}/tables/summary.csv", caption="../report/summary.rst", category="Tables"),
        comparison=report(f"{REPORT}/tables/comparison.csv", caption="../report/comparison.rst", category="Tables"),
        labels=report(f"{REPORT}/tables/labels.csv", caption="../report/labels.rst", category="Tables"),
        cost=report(f"{REPORT}/tables/cost.csv", caption="../report/cost.rst", category="Tables"),
        sweeps=report(f"{REPORT}/tables/sweeps.csv", caption="../report/sweeps.rst", category="Tables"),
        time=report(f"{REPORT}/tables/inference_time.csv", caption="../report/time.rst", category="Tables"),
        published=f"{REPORT}/tables/published.csv",
        typeset=expand(
            f"{REPORT}/tables/{{table}}.{{kind}}",
            table=["summary", "comparison", "labels", "sweeps", "cost", "inference_time", "published"],
            kind=["md", "tex"],
        ),
        figures=report(
            expand(f"{REPORT}/figures/{{figure}}.png", figure=FIGURES),
            caption="../report/figures.rst",
            category="Figures",
        ),
        drawings=expand(f"{REPORT}/figures/{{figure}}.svg", figure=FIGURES),
        memory=report(f"{AGAINST}_memory.png", caption="../report/memory.rst", category="Figures"),
        time_figure=report(
            [f"{AGAINST}_seconds.png"] if TIMINGS else [],
            caption="../report/time.rst",
            category="Figures",
        ),
        time_drawing=[f"{AGAINST}_seconds.svg"] if TIMINGS else [],
        memory_drawing=f"{AGAINST}_memory.svg",
        sweep_figures=report(
            [f"{REPORT}/figures/sweep-{sweep.name}.png" for sweep in STUDY.sweeps],
            caption="../report/sweep_figures.rst",
            category="Figures",
        ),
        sweep_drawings=[f"{REPORT}/figures/sweep-{sweep.name}.svg" for sweep in STUDY.sweeps],
        comparisons=report(
            directory(f"{REPORT}/figures/comparisons"),
            patterns=["comparison-{cases}.png"],
            caption="../report/comparisons.rst",
            category="Overlays",
        ),
        overlays=report(
            [f"{REPORT}/figures/overlays/{model.removeprefix('ensembles/')}.png" for model in MODELS],
            caption="../report/overlays.rst",
            category="Overlays",
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{JOBS}/report.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(120),
    params:
        results=subpath(input.scores, parent=True),
        definition=DEFINITION,
        published=f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else "",
        timings=f"--timings {RESULTS}/timings.csv" if TIMINGS else "",
    shell:
        "megavoxel report --results {params.results:q} --definition {params.definition:q} --processes {threads} "
        "{params.published} {params.timings} > {log:q} 2>&1"


rule tables:
    """Tables and score figures again, from what is stored and nothing else: no input, so that nothing is trained."""
    input:
        image=used(CPU_IMAGE),
    log:
        f"{LOGS}/tables.log",
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        results=RESULTS,
        definition=DEFINITION,
        published=f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else "",
        timings=f"--timings {RESULTS}/timings.csv" if TIMINGS else "",
    shell:
        "megavoxel report --tables-only --results {params.results:q} --definition {params.definition:q} "
        "{params.published} {params.timings} > {log:q} 2>&1"


rule partial_report:
    """The page of what there is of a study, with what is missing at its top: no input, so that nothing is trained."""
    input:
        image=used(CPU_IMAGE),
    log:
        f"{LOGS}/partial_report.log",
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(120),
    params:
        results=RESULTS,
        definition=DEFINITION,
        published=f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else "",
    shell:
        "megavoxel report --partial --results {params.results:q} --definition {params.definition:q} "
        "--processes {threads} {params.published} > {log:q} 2>&1"
