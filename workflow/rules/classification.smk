# The chain of a study of `task: classification`, from checked cases and folds to its report: these rules stand in the
# place of those that preprocess, segment and score volumes.
REPORT = f"{RESULTS}/report"
CLASSIFICATION_FIGURES = [
    *[f"accuracy_against_{cost}" for cost in ("resolution", "memory", "seconds")],
    "cost_against_resolution",
    "training_curves",
]
PUBLISHED = [path for path in [CONFIG_FOLDER / "published" / f"{STUDY.name}.csv"] if path.is_file()]
# Without cross-validation there is nothing to validate on.
VALIDATED = [(model, fold) for model in MODELS for fold in folds_of(model) if STUDY.folds > 1]
DEFINITION = json.dumps(
    {
        "task": STUDY.task,
        "study": STUDY.name,
        "dataset": DATASET.name,
        "baseline": STUDY.baseline,
        "settings": list(SETTINGS),
        "cells": to_plain(STUDY.cells),
        "ensembles": {name: list(ensemble.members) for name, ensemble in ENSEMBLES.items()},
        "folds": {model.removeprefix("ensembles/"): list(folds_of(model)) for model in MODELS},
    }
)


localrules:
    fetch_weights,
    plan,
    plan_setting,
    ensemble_validation,
    ensemble_test,
    evaluate_validation,
    evaluate_test,
    collect_scores,
    report,
    tables,


wildcard_constraints:
    network=one_of(STUDY.weights),


rule fetch_weights:
    """Bring the published weights of a network."""
    input:
        image=used(CPU_IMAGE),
    output:
        weights="data/weights/{network}.pth",
    log:
        f"{LOGS}/fetch_weights/{{network}}.log",
    benchmark:
        f"{JOBS}/fetch_weights/{{network}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(60),
    params:
        weights=lambda wildcards: as_json(STUDY.weights[wildcards.network]),
    shell:
        "megavoxel fetch --weights {params.weights:q} --output {output.weights:q} > {log:q} 2>&1"


rule plan_setting:
    """Write down a setting, if every fold has images enough for it."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
    output:
        plan=f"{RESULTS}/{{setting}}/plan.json",
    log:
        f"{LOGS}/plan_setting/{{setting}}.log",
    benchmark:
        f"{JOBS}/plan_setting/{{setting}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        definition=lambda wildcards: as_json(SETTINGS[wildcards.setting]),
        study=STUDY.name,
        dataset=DATASET.name,
        seed=STUDY.seed,
    shell:
        "megavoxel plan --cases {input.cases:q} --splits {input.splits:q} --definition {params.definition:q} "
        "--study-name {params.study:q} --dataset {params.dataset:q} --seed {params.seed} "
        "--output {output.plan:q} > {log:q} 2>&1"


rule plan:
    """Forecast memory and time of every setting. Nothing is declared that it makes: so plan.tsv is always printed."""
    input:
        image=used(CPU_IMAGE),
    log:
        f"{LOGS}/plan.log",
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(30),
    params:
        definition=json.dumps(config),
        hardware=os.path.relpath(CONFIG_FOLDER / "hardware.yaml"),
        datasets=os.path.relpath(CONFIG_FOLDER / "datasets"),
        table=f"{RESULTS}/plan.tsv",
    shell:
        "megavoxel estimate --definition {params.definition:q} --hardware {params.hardware:q} "
        "--datasets {params.datasets:q} --output {params.table:q} 2> {log:q}"


# One job per setting and fold; with several workers the stage starts a process for each. Its states lie outside of the
# declared outputs: a killed or repeated job finds them.
rule train:
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        checksums=rules.fetch.output.checksums,
        weights=published_weights,
    output:
        model=f"{RESULTS}/{{setting}}/fold-{{fold}}/model.pt",
        history=f"{RESULTS}/{{setting}}/fold-{{fold}}/history.csv",
        manifest=f"{RESULTS}/{{setting}}/fold-{{fold}}/manifest.json",
    log:
        f"{LOGS}/train/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/train/{{setting}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: lambda wildcards: DEVICE.cpus_per_job * SETTINGS[wildcards.setting].workers
    resources:
        **on_devices("training", training_devices),
    params:
        weights=lambda wildcards, input: f"--weights {shlex.quote(input.weights)}" if input.get("weights") else "",
        state=f"state/{STUDY.name}/{{setting}}/fold-{{fold}}",
        folder=subpath(output.model, parent=True),
        launcher=launcher,
    # Slurm tells all processes of a job to end. The shell must outlive training, which has a state to write.
    shell:
        "trap : TERM USR1; {params.launcher} megavoxel train --plan {input.plan:q} --cases {input.cases:q} "
        "--splits {input.splits:q} --fold {wildcards.fold} {params.weights} --checksums {input.checksums:q} "
        "--state {params.state:q} --output {params.folder:q} --threads {resources.cpus_per_task} > {log:q} 2>&1"


rule predict_validation:
    """Classify the validation images of a fold by the network that did not see them."""
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        weights=rules.train.output.model,
    output:
        probabilities=f"{RESULTS}/{{setting}}/fold-{{fold}}/validation.csv",
    log:
        f"{LOGS}/predict_validation/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/predict_validation/{{setting}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: DEVICE.cpus_per_job
    resources:
        **on_devices("prediction", predicting_devices_of),
    params:
        part="validation --fold {fold}",
    shell:
        "megavoxel predict --plan {input.plan:q} --weights {input.weights:q} --cases {input.cases:q} "
        "--splits {input.splits:q} --split {params.part} --output {output.probabilities:q} "
        "--threads {resources.cpus_per_task} > {log:q} 2>&1"


use rule predict_validation as predict_test with:
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        weights=lambda wildcards: expand(
            rules.train.output.model, setting=wildcards.setting, fold=folds_of(wildcards.setting)
        ),
    output:
        probabilities=f"{RESULTS}/{{setting}}/test.csv",
    log:
        f"{LOGS}/predict_test/{{setting}}.log",
    benchmark:
        f"{JOBS}/predict_test/{{setting}}.tsv"
    params:
        part="test",


rule ensemble_validation:
    """Average the members' probabilities."""
    input:
        image=used(CPU_IMAGE),
        probabilities=of_members(f"{RESULTS}/{{member}}/fold-{{fold}}/validation.csv"),
    output:
        probabilities=f"{RESULTS}/ensembles/{{ensemble}}/fold-{{fold}}/validation.csv",
    log:
        f"{LOGS}/ensemble_validation/{{ensemble}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/ensemble_validation/{{ensemble}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        members=lambda wildcards: ENSEMBLES[wildcards.ensemble].members,
    shell:
        "megavoxel ensemble --members {params.members:q} --probabilities {input.probabilities:q} "
        "--output {output.probabilities:q} > {log:q} 2>&1"


use rule ensemble_validation as ensemble_test with:
    input:
        image=used(CPU_IMAGE),
        probabilities=of_members(f"{RESULTS}/{{member}}/test.csv"),
    output:
        probabilities=f"{RESULTS}/ensembles/{{ensemble}}/test.csv",
    log:
        f"{LOGS}/ensemble_test/{{ensemble}}.log",
    benchmark:
        f"{JOBS}/ensemble_test/{{ensemble}}.tsv"


rule evaluate_validation:
    """Probabilities and truth of every image, and the metrics."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        probabilities=f"{RESULTS}/{{model}}/fold-{{fold}}/validation.csv",
    output:
        scores=f"{RESULTS}/{{model}}/fold-{{fold}}/scores.csv",
    log:
        f"{LOGS}/evaluate_validation/{{model}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/evaluate_validation/{{model}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        name=lambda wildcards: wildcards.model.removeprefix("ensembles/"),
        split="validation",
        fold="{fold}",
    shell:
        "megavoxel evaluate {input.probabilities:q} --cases {input.cases:q} --splits {input.splits:q} "
        "--split {params.split} --fold {params.fold} --setting {params.name:q} --output {output.scores:q} > {log:q} 2>&1"


use rule evaluate_validation as evaluate_test with:
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        probabilities=f"{RESULTS}/{{model}}/test.csv",
    output:
        scores=f"{RESULTS}/{{model}}/scores-test.csv",
    log:
        f"{LOGS}/evaluate_test/{{model}}.log",
    benchmark:
        f"{JOBS}/evaluate_test/{{model}}.tsv"
    params:
        name=lambda wildcards: wildcards.model.removeprefix("ensembles/"),
        split="test",
        fold="all",


rule collect_scores:
    """All scores of the study in one table."""
    input:
        image=used(CPU_IMAGE),
        validation=[f"{RESULTS}/{model}/fold-{fold}/scores.csv" for model, fold in VALIDATED],
        test=[f"{RESULTS}/{model}/scores-test.csv" for model in MODELS],
    output:
        scores=f"{RESULTS}/scores.csv",
    log:
        f"{LOGS}/collect_scores.log",
    benchmark:
        f"{JOBS}/collect_scores.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    shell:
        "megavoxel evaluate --collect {input.validation:q} {input.test:q} --output {output.scores:q} > {log:q} 2>&1"


rule report:
    """Everything a reader sees, beside the scores."""
    input:
        image=used(CPU_IMAGE),
        scores=rules.collect_scores.output.scores,
        plans=expand(rules.plan_setting.output.plan, setting=SETTINGS),
        histories=[f"{RESULTS}/{setting}/fold-{fold}/history.csv" for setting, fold in RUNS],
        manifests=[f"{RESULTS}/{setting}/fold-{fold}/manifest.json" for setting, fold in RUNS],
        published=PUBLISHED,
    output:
        page=report(f"{REPORT}/index.html", caption="../report/page.rst", category="Page"),
        tables=report(
            expand(
                f"{REPORT}/tables/{{table}}.csv", table=["summary", "distributed", "cost", "confusion", "published"]
            ),
            caption="../report/classification_tables.rst",
            category="Tables",
        ),
        typeset=expand(
            f"{REPORT}/tables/{{table}}.{{kind}}",
            table=["summary", "distributed", "cost", "confusion", "published"],
            kind=["md", "tex"],
        ),
        figures=report(
            expand(
                f"{REPORT}/figures/{{figure}}.png",
                figure=CLASSIFICATION_FIGURES,
            ),
            caption="../report/classification_figures.rst",
            category="Figures",
        ),
        drawings=expand(
            f"{REPORT}/figures/{{figure}}.svg",
            figure=CLASSIFICATION_FIGURES,
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{JOBS}/report.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        results=subpath(input.scores, parent=True),
        definition=DEFINITION,
        published=f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else "",
    shell:
        "megavoxel report --results {params.results:q} --definition {params.definition:q} {params.published} "
        "> {log:q} 2>&1"


rule tables:
    """Tables and figures again, from what is stored and nothing else: no input, so that nothing is trained."""
    input:
        image=used(CPU_IMAGE),
    log:
        f"{LOGS}/tables.log",
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(4000),
        runtime=by_attempt(60),
    params:
        results=RESULTS,
        definition=DEFINITION,
        published=f"--published {shlex.quote(str(PUBLISHED[0]))}" if PUBLISHED else "",
    shell:
        "megavoxel report --tables-only --results {params.results:q} --definition {params.definition:q} "
        "{params.published} > {log:q} 2>&1"
