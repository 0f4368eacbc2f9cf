# How far the probabilities of a setting can be trusted, where the study asks for it.
CONFIDENCE = [
    f"{RESULTS}/{setting}/{made}"
    for setting in COMPARED_SETTINGS
    for made in ["confidence-test", *(["temperature.json"] if STUDY.validates else [])]
    if HAS_CONFIDENCE
]


rule temperature:
    """What the logits of a setting are divided by, so that probabilities say how often they are right."""
    input:
        image=used(CPU_IMAGE),
        confidence=lambda wildcards: [
            f"{RESULTS}/{setting}/fold-{fold}/confidence"
            for setting, fold in VALIDATED
            if setting == wildcards.setting
        ],
    output:
        temperature=f"{RESULTS}/{{setting}}/temperature.json",
    log:
        f"{LOGS}/temperature/{{setting}}.log",
    benchmark:
        f"{JOBS}/temperature/{{setting}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    shell:
        "megavoxel temperature --confidence {input.confidence:q} --output {output.temperature:q} > {log:q} 2>&1"
