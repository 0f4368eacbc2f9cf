# From a dataset file to checked cases, their measures and the folds; published weights.
localrules:
    fetch,
    fetch_weights,
    split,


rule fetch:
    """Download, link or make the dataset."""
    input:
        image=used(CPU_IMAGE),
    output:
        description=f"{DATA}/dataset.json",
        checksums=f"{DATA}/checksums.tsv",
    log:
        f"{LOGS}/fetch.log",
    benchmark:
        f"{JOBS}/fetch.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        # By a function: `{case}` in a pattern of the dataset file is no wildcard.
        reads=lambda wildcards: fetched_part(DATASET),
        dataset=dataset_file,
        folder=subpath(output.description, parent=True),
        mirror=lambda wildcards, output: f"--mirror {shlex.quote(MIRROR)}" if MIRROR else "",
    shell:
        "megavoxel fetch --dataset {params.dataset:q} --output {params.folder:q} {params.mirror} > {log:q} 2>&1"


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
        weights=lambda wildcards: as_json(WEIGHTS[wildcards.network]),
    shell:
        "megavoxel fetch --weights {params.weights:q} --output {output.weights:q} > {log:q} 2>&1"


rule check:
    """Look at every case; checks.csv stays where a fault stops the workflow, as logs do."""
    input:
        image=used(CPU_IMAGE),
        description=rules.fetch.output.description,
        tables=CASE_TABLES,
    output:
        cases=f"{RESULTS}/cases.json",
    log:
        checks=f"{RESULTS}/checks.csv",
        messages=f"{LOGS}/check.log",
    benchmark:
        f"{JOBS}/check.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(60),
    params:
        reads=lambda wildcards: checked_part(DATASET),
        dataset=dataset_file,
        folder=subpath(input.description, parent=True),
    shell:
        "megavoxel check --dataset {params.dataset:q} --data {params.folder:q} --checks {log.checks:q} "
        "--output {output.cases:q} --processes {threads} > {log.messages:q} 2>&1"


rule fingerprint:
    """Measure shapes, spacings and intensities."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
    output:
        fingerprint=f"{RESULTS}/fingerprint.json",
    log:
        f"{LOGS}/fingerprint.log",
    benchmark:
        f"{JOBS}/fingerprint.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(16000),
        runtime=by_attempt(120),
    shell:
        "megavoxel fingerprint --cases {input.cases:q} --output {output.fingerprint:q} "
        "--processes {threads} > {log:q} 2>&1"


rule split:
    """Divide the training cases into folds."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        ready_made=READY_SPLITS,
    output:
        splits=f"{RESULTS}/splits.json",
    log:
        f"{LOGS}/split.log",
    benchmark:
        f"{JOBS}/split.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        folds=STUDY.folds,
        seed=STUDY.seed,
        ready_made=f"--splits {shlex.quote(READY_SPLITS)}" if READY_SPLITS else "",
        metrics=checked_metrics_option,
    shell:
        "megavoxel split --cases {input.cases:q} --folds {params.folds} --seed {params.seed} {params.ready_made} "
        "{params.metrics} --output {output.splits:q} > {log:q} 2>&1"
