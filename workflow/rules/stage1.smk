# From the first stage of a cascade to the second: label maps of the first on the grid of the second. Those of a fold's
# validation cases were made by networks that did not see them, so all folds together are what the second stage trains on.


rule stage1_validation:
    """Bring the first stage's labels of a fold's validation cases to the second stage's grid."""
    input:
        image=used(CPU_IMAGE),
        plan=TRAINING_PLAN,
        splits=rules.split.output.splits,
        preprocessed=preprocessed_cases,
        predictions=of_first_stage(f"{RESULTS}/{{first}}/fold-{{fold}}/validation"),
    output:
        labels=directory(f"{RESULTS}/{{setting}}/stage1/fold-{{fold}}"),
    log:
        f"{LOGS}/stage1_validation/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/stage1_validation/{{setting}}-{{fold}}.tsv"
    wildcard_constraints:
        setting=one_of(CASCADES),
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(16000),
        runtime=by_attempt(120),
    params:
        samples=samples_option,
        part=split_option,
    shell:
        "megavoxel stage1 --plan {input.plan:q} {params.samples} --splits {input.splits:q} "
        "{params.part} --predictions {input.predictions:q} --processes {threads} "
        "--output {output.labels:q} > {log:q} 2>&1"


use rule stage1_validation as stage1_test with:
    input:
        image=used(CPU_IMAGE),
        plan=TRAINING_PLAN,
        splits=rules.split.output.splits,
        preprocessed=preprocessed_cases,
        predictions=of_first_stage(f"{RESULTS}/{{first}}/test-raw"),
    output:
        labels=directory(f"{RESULTS}/{{setting}}/stage1/test"),
    log:
        f"{LOGS}/stage1_test/{{setting}}.log",
    benchmark:
        f"{JOBS}/stage1_test/{{setting}}.tsv"
