# Tables, figures and the page.
REPORT = f"{RESULTS}/report"
# A paper's own numbers, where the study has some: config/published/STUDY.csv
PUBLISHED = [path for path in [CONFIG_FOLDER / "published" / f"{STUDY.name}.csv"] if path.is_file()]
PUBLISHED_OPTION = f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else ""
# What papers claim and this study measures on other data.
CLAIMS = [path for path in [CONFIG_FOLDER / "claims.csv"] if path.is_file() and f",{STUDY.name}," in path.read_text()]
PUBLISHED_OPTION += f" --claims {shlex.quote(str(CLAIMS[0]))}" if CLAIMS else ""
TIMINGS_OPTION = f"--timings {RESULTS}/timings.csv" if TIMINGS else ""
DEFINITION = json.dumps(definition_of(STUDY, DATASET.name, f"{RESULTS}/cases.json"))
# The caption of each table in Snakemake's own report.
if SEGMENTS:
    TABLES = {
        name: name for name in ("summary", "comparison", "best", "ranking", "subgroups", "labels", "cost", "sweeps")
    }
    TABLES |= {"inference_time": "time"}
    TABLES |= {"lesions": "lesions"} if HAS_LESIONS else {}
    TABLES |= dict.fromkeys(["confidence", "reliability"] if HAS_CONFIDENCE else [], "confidence")
    FIGURES = [*[f"{metric}_by_label" for metric in METRICS], "training_curves"]
else:
    TABLES = dict.fromkeys(("summary", "distributed", "cost", "confusion"), "classification_tables")
    FIGURES = [f"accuracy_against_{cost}" for cost in ("resolution", "memory", "seconds")]
    FIGURES += ["cost_against_resolution", "training_curves"]
# What only reports of label maps have: figures by file and caption, and pictures of cases.
SCATTERS = {}
if SEGMENTS:
    SCATTERS = {f"{METRICS[0]}_against_memory": "memory"}
    SCATTERS |= {f"{METRICS[0]}_against_seconds": "time"} if TIMINGS else {}
CONFIDENCE_FIGURES = ["reliability", "disagreement"] if HAS_CONFIDENCE else []
SWEEPS = [f"sweep-{sweep.name}" for sweep in STUDY.sweeps] if SEGMENTS else []
PICTURES = (
    {
        "comparisons": report(
            directory(f"{REPORT}/figures/comparisons"),
            patterns=["comparison-{cases}.png", "solid-{cases}.png"],
            caption="../report/comparisons.rst",
            category="Overlays",
        ),
        "overlays": report(
            [f"{REPORT}/figures/overlays/{model.removeprefix('ensembles/')}.png" for model in MODELS],
            caption="../report/overlays.rst",
            category="Overlays",
        ),
    }
    if SEGMENTS
    else {}
)
# Label maps that are drawn.
DRAWN = [f"{RESULTS}/{model}/fold-{fold}/validation" for model, fold in VALIDATED if SEGMENTS]
DRAWN += [f"{RESULTS}/{model}/test" for model in MODELS if SEGMENTS]


localrules:
    tables,
    partial_report,


if not SEGMENTS:

    localrules:
        report,


rule report:
    """Everything a reader sees, beside the scores."""
    input:
        **TOLERANCES,
        image=used(CPU_IMAGE),
        scores=rules.collect_scores.output.scores,
        cases=rules.check.output.cases,
        plans=expand(PLAN, setting=COMPARED_SETTINGS),
        histories=[f"{RESULTS}/{setting}/fold-{fold}/history.csv" for setting, fold in RUNS],
        manifests=[f"{RESULTS}/{setting}/fold-{fold}/manifest.json" for setting, fold in RUNS],
        drawn=DRAWN,
        timings=f"{RESULTS}/timings.csv" if TIMINGS else [],
        confidence=CONFIDENCE,
        lesions=LESIONS,
        published=PUBLISHED + CLAIMS,
    output:
        **{
            name: report(f"{REPORT}/tables/{name}.csv", caption=f"../report/{caption}.rst", category="Tables")
            for name, caption in TABLES.items()
        },
        **{
            name: report(f"{REPORT}/figures/{name}.png", caption=f"../report/{caption}.rst", category="Figures")
            for name, caption in SCATTERS.items()
        },
        **PICTURES,
        page=report(f"{REPORT}/index.html", caption="../report/page.rst", category="Page"),
        published=f"{REPORT}/tables/published.csv",
        methods=f"{REPORT}/methods.md",
        references=f"{REPORT}/references.bib",
        claim=f"{REPORT}/claim.md",
        typeset=expand(f"{REPORT}/tables/{{table}}.{{kind}}", table=[*TABLES, "published"], kind=["md", "tex"]),
        figures=report(
            expand(f"{REPORT}/figures/{{figure}}.png", figure=FIGURES),
            caption="../report/figures.rst" if SEGMENTS else "../report/classification_figures.rst",
            category="Figures",
        ),
        confidence_figures=report(
            expand(f"{REPORT}/figures/{{figure}}.png", figure=CONFIDENCE_FIGURES),
            caption="../report/confidence.rst",
            category="Figures",
        ),
        sweep_figures=report(
            expand(f"{REPORT}/figures/{{figure}}.png", figure=SWEEPS),
            caption="../report/sweep_figures.rst",
            category="Figures",
        ),
        drawings=expand(f"{REPORT}/figures/{{figure}}.svg", figure=[*FIGURES, *SCATTERS, *CONFIDENCE_FIGURES, *SWEEPS]),
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
        published=PUBLISHED_OPTION,
        timings=TIMINGS_OPTION,
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
        published=PUBLISHED_OPTION,
        timings=TIMINGS_OPTION,
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
        published=PUBLISHED_OPTION,
    shell:
        "megavoxel report --partial --results {params.results:q} --definition {params.definition:q} "
        "--processes {threads} {params.published} > {log:q} 2>&1"
