# DSC and NSD of every case and label, first per job, then in one tidy table.
localrules:
    collect_scores,


rule evaluate_validation:
    input:
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        predictions=f"{RESULTS}/{{model}}/fold-{{fold}}/validation",
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
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(120),
    params:
        name=lambda wildcards: wildcards.model.removeprefix("ensembles/"),
        split="validation",
        fold="{fold}",
    shell:
        "megavoxel evaluate {input.predictions:q} --cases {input.cases:q} --splits {input.splits:q} "
        "--split {params.split} --fold {params.fold} --setting {params.name:q} --processes {threads} "
        "--output {output.scores:q} > {log:q} 2>&1"


use rule evaluate_validation as evaluate_test with:
    input:
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        predictions=f"{RESULTS}/{{model}}/test",
    output:
        scores=f"{RESULTS}/{{model}}/scores-test.csv",
    log:
        f"{LOGS}/evaluate_test/{{model}}.log",
    benchmark:
        f"{JOBS}/evaluate_test/{{model}}.tsv"
    group:
        "test_scores"
    params:
        name=lambda wildcards: wildcards.model.removeprefix("ensembles/"),
        split="test",
        fold="all",


rule collect_scores:
    """All scores of the study in one table."""
    input:
        validation=[f"{RESULTS}/{model}/fold-{fold}/scores.csv" for model in MODELS for fold in folds_of(model)],
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
