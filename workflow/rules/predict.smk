# Predictions of validation folds and of the test split by the networks of a setting.


rule predict_validation:
    """Predict the validation cases of a fold by the network that did not see them."""
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        splits=rules.split.output.splits,
        cases=IMAGE_LIST,
        shards=preprocessed_shards,
        stage1=first_stage_of("fold-{fold}"),
        weights=rules.train.output.model,
    output:
        predictions=predicted(f"{RESULTS}/{{setting}}/fold-{{fold}}/validation"),
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
        samples=samples_option,
        stage1=first_stage_option,
        launcher=launcher,
        part=split_option,
        logits=lambda wildcards, output: f"--logits {output.logits}" if output.get("logits") else "",
    shell:
        "{params.launcher} megavoxel predict --plan {input.plan:q} --weights {input.weights:q} --splits {input.splits:q} "
        "{params.part} {params.samples} {params.stage1} --output {output.predictions:q} {params.logits} "
        "--threads {resources.cpus_per_task} > {log:q} 2>&1"


use rule predict_validation as predict_validation_for_ensembles with:
    output:
        predictions=predicted(f"{RESULTS}/{{setting}}/fold-{{fold}}/validation"),
        logits=temp(directory(f"{RESULTS}/{{setting}}/fold-{{fold}}/logits")),
    wildcard_constraints:
        setting=one_of(MEMBERS),


use rule predict_validation as predict_test with:
    input:
        image=used(GPU_IMAGE),
        plan=rules.plan_setting.output.plan,
        splits=rules.split.output.splits,
        cases=IMAGE_LIST,
        shards=preprocessed_shards,
        stage1=first_stage_of("test"),
        weights=lambda wildcards: expand(
            rules.train.output.model, setting=wildcards.setting, fold=folds_of(wildcards.setting)
        ),
    output:
        predictions=predicted_test(f"{RESULTS}/{{setting}}"),
    log:
        f"{LOGS}/predict_test/{{setting}}.log",
    benchmark:
        f"{JOBS}/predict_test/{{setting}}.tsv"


use rule predict_test as predict_test_for_ensembles with:
    output:
        predictions=predicted_test(f"{RESULTS}/{{setting}}"),
        logits=temp(directory(f"{RESULTS}/{{setting}}/test-logits")),
    wildcard_constraints:
        setting=one_of(MEMBERS),
