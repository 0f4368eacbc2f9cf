# Predictions of ensembles: the mean of their members.
if not SEGMENTS:

    localrules:
        ensemble_validation,
        ensemble_test,


rule ensemble_validation:
    """Average the members on a fold's validation cases; label maps each after its own post-processing."""
    input:
        **of_each_member("fold-{fold}", "validation", "fold-{fold}"),
        image=used(GPU_IMAGE if SEGMENTS else CPU_IMAGE),
    output:
        predictions=predicted(f"{RESULTS}/ensembles/{{ensemble}}/fold-{{fold}}/validation"),
    log:
        f"{LOGS}/ensemble_validation/{{ensemble}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/ensemble_validation/{{ensemble}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE if SEGMENTS else CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        members=lambda wildcards: ENSEMBLES[wildcards.ensemble].members,
        averaged=averaged_option,
    shell:
        "megavoxel ensemble --members {params.members:q} {params.averaged} --output {output.predictions:q} "
        "--threads {threads} > {log:q} 2>&1"


use rule ensemble_validation as ensemble_test with:
    input:
        **of_each_member("", "test-raw" if SEGMENTS else "test", "test"),
        image=used(GPU_IMAGE if SEGMENTS else CPU_IMAGE),
    output:
        predictions=predicted_test(f"{RESULTS}/ensembles/{{ensemble}}"),
    log:
        f"{LOGS}/ensemble_test/{{ensemble}}.log",
    benchmark:
        f"{JOBS}/ensemble_test/{{ensemble}}.tsv"
