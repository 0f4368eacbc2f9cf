# Plans, and the arrays that networks read. Settings with the same `preprocessing` keys share both.
localrules:
    plan,
    plan_preprocessing,
    plan_setting,


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


rule plan_setting:
    """Choose patch, batch and network of a setting where the study leaves them open."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        preprocessing=lambda wildcards: f"{RESULTS}/preprocessed/{preprocessing_key(wildcards.setting)}/plan.json",
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
        device=lambda wildcards: planning_device(wildcards.setting),
    shell:
        "megavoxel plan --cases {input.cases:q} --preprocessing-plan {input.preprocessing:q} --definition {params.definition:q} "
        "--study-name {params.study:q} --dataset {params.dataset:q} --seed {params.seed} "
        "{params.device} --output {output.plan:q} > {log:q} 2>&1"


rule plan:
    """Forecast memory and hours of every setting. Nothing is declared that it makes: so plan.tsv is always printed."""
    input:
        **FACTS,
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
        facts=" ".join(f"--{name} {shlex.quote(path)}" for name, path in FACTS.items()),
        table=f"{RESULTS}/plan.tsv",
    shell:
        "megavoxel estimate --definition {params.definition:q} --hardware {params.hardware:q} "
        "--datasets {params.datasets:q} {params.facts} --output {params.table:q} 2> {log:q}"


rule preprocess:
    """Crop, normalise and resample one share of the cases."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        plan=rules.plan_preprocessing.output.plan,
    output:
        done=f"{RESULTS}/preprocessed/{{preprocessing}}/shard-{{shard}}.json",
    log:
        f"{LOGS}/preprocess/{{preprocessing}}-{{shard}}.log",
    benchmark:
        f"{JOBS}/preprocess/{{preprocessing}}-{{shard}}.tsv"
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
        shards=STUDY.shards,
    shell:
        "megavoxel preprocess --cases {input.cases:q} --plan {input.plan:q} --folder {params.folder:q} "
        "--shard {wildcards.shard} --shards {params.shards} --processes {threads} "
        "--output {output.done:q} > {log:q} 2>&1"
