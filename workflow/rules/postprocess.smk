# The components that are kept of label maps: found on the cross-validation, applied to the test split.
rule postprocess_determine:
    """Find the components to keep on the cross-validation of a setting or ensemble."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        predictions=lambda wildcards: [
            f"{RESULTS}/{model}/fold-{fold}/validation" for model, fold in VALIDATED if model == wildcards.model
        ],
    output:
        postprocessing=f"{RESULTS}/{{model}}/postprocessing.json",
    log:
        f"{LOGS}/postprocess_determine/{{model}}.log",
    benchmark:
        f"{JOBS}/postprocess_determine/{{model}}.tsv"
    group:  # on a cluster one job with what is done by it, and with the scoring of these label maps
        "test_scores"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(120),
    params:
        option=lambda wildcards: postprocessing_option(wildcards.model),
    shell:
        "megavoxel postprocess --determine --predictions {input.predictions:q} --cases {input.cases:q} "
        "{params.option} --processes {threads} --output {output.postprocessing:q} > {log:q} 2>&1"


rule postprocess_apply:
    """Apply them to the test split."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        predictions=f"{RESULTS}/{{model}}/test-raw",
        postprocessing=rules.postprocess_determine.output.postprocessing,
    output:
        predictions=directory(f"{RESULTS}/{{model}}/test"),
    log:
        f"{LOGS}/postprocess_apply/{{model}}.log",
    benchmark:
        f"{JOBS}/postprocess_apply/{{model}}.tsv"
    group:
        "test_scores"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(120),
    shell:
        "megavoxel postprocess --apply {input.postprocessing:q} --predictions {input.predictions:q} "
        "--cases {input.cases:q} --output {output.predictions:q} > {log:q} 2>&1"
