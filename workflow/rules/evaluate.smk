# Scores of every case, first per job, then in one tidy table.
localrules:
    collect_scores,


if not SEGMENTS:

    localrules:
        evaluate_validation,
        evaluate_test,


# The tolerances of NSD that scores were worked out with.
TOLERANCES = {"tolerances": f"{RESULTS}/tolerances.json"} if SEGMENTS else {}


# Tables of lesions, where a metric counts components.
LESIONS = [f"{RESULTS}/{model}/fold-{fold}/lesions.csv" for model, fold in VALIDATED if HAS_LESIONS]
LESIONS += [f"{RESULTS}/{model}/lesions-test.csv" for model in MODELS if HAS_LESIONS]


rule evaluate_validation:
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        predictions=f"{RESULTS}/{{model}}/fold-{{fold}}/validation{PREDICTIONS}",
    output:
        **({"lesions": f"{RESULTS}/{{model}}/fold-{{fold}}/lesions.csv"} if HAS_LESIONS else {}),
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
        name=name_of,
        part=split_option,
        metrics=METRICS_OPTION,
        lesions=lesions_option,
        tolerance=tolerance_option,
    shell:
        "megavoxel evaluate {input.predictions:q} --cases {input.cases:q} --splits {input.splits:q} "
        "{params.part} --setting {params.name:q} --processes {threads} {params.metrics} {params.lesions} {params.tolerance} --output {output.scores:q} "
        "> {log:q} 2>&1"


use rule evaluate_validation as evaluate_test with:
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        splits=rules.split.output.splits,
        predictions=f"{RESULTS}/{{model}}/test{PREDICTIONS}",
    output:
        **({"lesions": f"{RESULTS}/{{model}}/lesions-test.csv"} if HAS_LESIONS else {}),
        scores=f"{RESULTS}/{{model}}/scores-test.csv",
    log:
        f"{LOGS}/evaluate_test/{{model}}.log",
    benchmark:
        f"{JOBS}/evaluate_test/{{model}}.tsv"
    group:
        "test_scores"


rule collect_scores:
    """All scores of the study in one table."""
    input:
        image=used(CPU_IMAGE),
        validation=[f"{RESULTS}/{model}/fold-{fold}/scores.csv" for model, fold in VALIDATED],
        test=[f"{RESULTS}/{model}/scores-test.csv" for model in MODELS],
    output:
        **TOLERANCES,
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
    params:
        tolerances=recorded_tolerances_option,
    shell:
        "megavoxel evaluate --collect {input.validation:q} {input.test:q} {params.tolerances} --output {output.scores:q} "
        "> {log:q} 2>&1"
