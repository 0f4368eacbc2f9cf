# The arrays that networks read. Settings with the same `preprocessing` keys share them.
localrules:
    plan_preprocessing,
    collect_preprocessed,


rule plan_preprocessing:
    """Choose spacing, axis order and normalisation."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        fingerprint=rules.fingerprint.output.fingerprint,
    output:
        plan=f"{RESULTS}/preprocessed/{{preprocessing}}/plan.json",
    log:
        f"{LOGS}/plan_preprocessing/{{preprocessing}}.log",
    benchmark:
        f"{JOBS}/plan_preprocessing/{{preprocessing}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        definition=lambda wildcards: as_json(PREPROCESSINGS[wildcards.preprocessing]),
    shell:
        "megavoxel plan-preprocessing --cases {input.cases:q} --fingerprint {input.fingerprint:q} "
        "--definition {params.definition:q} --output {output.plan:q} > {log:q} 2>&1"


rule preprocess:
    """Crop, normalise and resample one share of the cases."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        plan=rules.plan_preprocessing.output.plan,
        checksums=ancient(CHECKSUMS),
    output:
        done=f"{RESULTS}/preprocessed/{{preprocessing}}/shard-{{share}}-of-{{total}}.json",
    log:
        f"{LOGS}/preprocess/{{preprocessing}}-{{share}}-of-{{total}}.log",
    benchmark:
        f"{JOBS}/preprocess/{{preprocessing}}-{{share}}-of-{{total}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(16000),
        runtime=by_attempt(240),
    params:
        folder=f"{RESULTS}/preprocessed/{{preprocessing}}/cases",
    # What is kept was made under the same plan, of the same files.
    shell:
        "megavoxel preprocess --cases {input.cases:q} --plan {input.plan:q} --folder {params.folder:q} "
        "--shard {wildcards.share} --shards {wildcards.total} --processes {threads} "
        "--resume --checksums {input.checksums:q} "
        "--output {output.done:q} > {log:q} 2>&1"


rule collect_preprocessed:
    """One marker of all cases, whatever the number of jobs that made them."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        shards=lambda wildcards: expand(
            rules.preprocess.output.done,
            preprocessing=wildcards.preprocessing,
            **preprocessing_shares(wildcards.preprocessing),
        ),
    output:
        done=f"{RESULTS}/preprocessed/{{preprocessing}}/done.json",
    log:
        f"{LOGS}/collect_preprocessed/{{preprocessing}}.log",
    benchmark:
        f"{JOBS}/collect_preprocessed/{{preprocessing}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    shell:
        "megavoxel preprocess --collect {input.shards:q} --cases {input.cases:q} --output {output.done:q} "
        "> {log:q} 2>&1"
