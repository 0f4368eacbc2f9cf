# Label maps of validation folds and of the test split, for settings and ensembles, and their post-processing.
localrules:
    postprocess_determine,


rule predict_validation:
    """Label the validation cases of a fold by the network that did not see them."""
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        splits=rules.split.output.splits,
        shards=preprocessed_shards,
        stage1=first_stage_of("fold-{fold}"),
        weights=rules.train.output.model,
    output:
        predictions=directory(f"{RESULTS}/{{setting}}/fold-{{fold}}/validation"),
    log:
        f"{LOGS}/predict_validation/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/predict_validation/{{setting}}-{{fold}}.tsv"
    wildcard_constraints:
        setting=one_of(set(SETTINGS) - MEMBERS),
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: DEVICE.cpus_per_job
    resources:
        **on_devices("prediction", predicting_devices_of),
    params:
        preprocessed=preprocessed_folder,
        stage1=first_stage_option,
        launcher=launcher,
        logits="",
        fold="--fold {fold}",
        split="validation",
    shell:
        "{params.launcher} megavoxel predict --plan {input.plan:q} --weights {input.weights:q} --splits {input.splits:q} "
        "--split {params.split} {params.fold} --preprocessed {params.preprocessed:q} {params.stage1} "
        "--output {output.predictions:q} {params.logits} --threads {resources.cpus_per_task} > {log:q} 2>&1"


use rule predict_validation as predict_validation_for_ensembles with:
    output:
        predictions=directory(f"{RESULTS}/{{setting}}/fold-{{fold}}/validation"),
        logits=temp(directory(f"{RESULTS}/{{setting}}/fold-{{fold}}/logits")),
    wildcard_constraints:
        setting=one_of(MEMBERS),
    params:
        preprocessed=preprocessed_folder,
        stage1=first_stage_option,
        launcher=launcher,
        logits=lambda wildcards, output: f"--logits {output.logits}",
        fold="--fold {fold}",
        split="validation",


use rule predict_validation as predict_test with:
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        splits=rules.split.output.splits,
        shards=preprocessed_shards,
        stage1=first_stage_of("test"),
        weights=lambda wildcards: expand(
            rules.train.output.model, setting=wildcards.setting, fold=folds_of(wildcards.setting)
        ),
    output:
        predictions=temp(directory(f"{RESULTS}/{{setting}}/test-raw")),
    log:
        f"{LOGS}/predict_test/{{setting}}.log",
    benchmark:
        f"{JOBS}/predict_test/{{setting}}.tsv"
    params:
        preprocessed=preprocessed_folder,
        stage1=first_stage_option,
        launcher=launcher,
        logits="",
        fold="",
        split="test",


use rule predict_test as predict_test_for_ensembles with:
    output:
        predictions=temp(directory(f"{RESULTS}/{{setting}}/test-raw")),
        logits=temp(directory(f"{RESULTS}/{{setting}}/test-logits")),
    wildcard_constraints:
        setting=one_of(MEMBERS),
    params:
        preprocessed=preprocessed_folder,
        stage1=first_stage_option,
        launcher=launcher,
        logits=lambda wildcards, output: f"--logits {output.logits}",
        fold="",
        split="test",


rule ensemble_validation:
    """Average the members on a fold's validation cases, each after its own post-processing."""
    input:
        image=used(GPU_IMAGE),
        logits=of_members(f"{RESULTS}/{{member}}/fold-{{fold}}/logits"),
        predictions=of_members(f"{RESULTS}/{{member}}/fold-{{fold}}/validation"),
        postprocessing=of_members(f"{RESULTS}/{{member}}/postprocessing.json"),
    output:
        predictions=directory(f"{RESULTS}/ensembles/{{ensemble}}/fold-{{fold}}/validation"),
    log:
        f"{LOGS}/ensemble_validation/{{ensemble}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/ensemble_validation/{{ensemble}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: 4
    resources:
        mem_mb=by_attempt(8000),
        runtime=by_attempt(240),
    params:
        members=lambda wildcards: ENSEMBLES[wildcards.ensemble].members,
    shell:
        "megavoxel ensemble --members {params.members:q} --logits {input.logits:q} "
        "--predictions {input.predictions:q} --postprocessing {input.postprocessing:q} "
        "--output {output.predictions:q} --threads {threads} > {log:q} 2>&1"


use rule ensemble_validation as ensemble_test with:
    input:
        image=used(GPU_IMAGE),
        logits=of_members(f"{RESULTS}/{{member}}/test-logits"),
        predictions=of_members(f"{RESULTS}/{{member}}/test-raw"),
        postprocessing=of_members(f"{RESULTS}/{{member}}/postprocessing.json"),
    output:
        predictions=temp(directory(f"{RESULTS}/ensembles/{{ensemble}}/test-raw")),
    log:
        f"{LOGS}/ensemble_test/{{ensemble}}.log",
    benchmark:
        f"{JOBS}/ensemble_test/{{ensemble}}.tsv"


rule postprocess_determine:
    """Find the components to keep on the cross-validation of a setting or ensemble."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        predictions=lambda wildcards: expand(
            f"{RESULTS}/{{model}}/fold-{{fold}}/validation", model=wildcards.model, fold=folds_of(wildcards.model)
        ),
    output:
        postprocessing=f"{RESULTS}/{{model}}/postprocessing.json",
    log:
        f"{LOGS}/postprocess_determine/{{model}}.log",
    benchmark:
        f"{JOBS}/postprocess_determine/{{model}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    params:
        option=lambda wildcards: postprocessing_option(wildcards.model),
    shell:
        "megavoxel postprocess --determine --predictions {input.predictions:q} --cases {input.cases:q} "
        "{params.option} --output {output.postprocessing:q} > {log:q} 2>&1"


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
    group:  # on a cluster one job with the scoring of these label maps
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
