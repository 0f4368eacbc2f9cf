# Predictions of validation folds and of the test split by the networks of a setting.
# Jobs that share the test cases; the scores of images are one table.
PART_OF_TEST = "-{share}-of-{total}" if SEGMENTS else ""


rule predict_validation:
    """Predict the validation cases of a fold by the network that did not see them."""
    input:
        image=used(GPU_IMAGE),
        plan=PLAN,
        splits=rules.split.output.splits,
        cases=IMAGE_LIST,
        preprocessed=preprocessed_cases,
        stage1=first_stage_of("fold-{fold}"),
        weights=rules.train.output.model,
    output:
        **confidence_of("fold-{fold}/confidence"),
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
        device=device_of_job,
        folder=lambda wildcards, output: output.predictions,
        part=split_option,
        cases=lambda wildcards, output: resuming_option(wildcards),
        products=products_option,
    shell:
        "{params.launcher} megavoxel predict --plan {input.plan:q} --weights {input.weights:q} --splits {input.splits:q} "
        "{params.part} {params.samples} {params.stage1} {params.cases} --output {params.folder:q} {params.products} "
        "{params.device} --threads {resources.cpus_per_task} > {log:q} 2>&1"


use rule predict_validation as predict_validation_for_ensembles with:
    output:
        **confidence_of("fold-{fold}/confidence"),
        predictions=predicted(f"{RESULTS}/{{setting}}/fold-{{fold}}/validation"),
        logits=logits_of("fold-{fold}"),
    wildcard_constraints:
        setting=one_of(MEMBERS),


use rule predict_validation as predict_test with:
    input:
        image=used(GPU_IMAGE),
        plan=PLAN,
        splits=rules.split.output.splits,
        cases=IMAGE_LIST,
        preprocessed=preprocessed_cases,
        stage1=first_stage_of("test"),
        weights=lambda wildcards: expand(
            rules.train.output.model, setting=wildcards.setting, fold=folds_of(wildcards.setting)
        ),
    output:
        predictions=(
            temp(directory(f"{RESULTS}/{{setting}}/test-part-{{share}}-of-{{total}}"))
            if SEGMENTS
            else predicted_test(f"{RESULTS}/{{setting}}")
        ),
    log:
        f"{LOGS}/predict_test/{{setting}}{PART_OF_TEST}.log",
    benchmark:
        f"{JOBS}/predict_test/{{setting}}{PART_OF_TEST}.tsv"
    wildcard_constraints:
        setting=one_of(set(SETTINGS) - MEMBERS),
    params:
        folder=lambda wildcards, output: f"{output.predictions}/maps" if SEGMENTS else output.predictions,


if SEGMENTS:

    localrules:
        collect_test,
        collect_test_for_ensembles,

    use rule predict_test as predict_test_for_ensembles with:
        log:
            f"{LOGS}/predict_test/{{setting}}{PART_OF_TEST}.log",
        wildcard_constraints:
            setting=one_of(MEMBERS),

    rule collect_test:
        """The test cases of all jobs in one folder."""
        input:
            image=used(CPU_IMAGE),
            cases=rules.check.output.cases,
            parts=test_parts,
        output:
            **confidence_of("confidence-test"),
            predictions=predicted_test(f"{RESULTS}/{{setting}}"),
        log:
            f"{LOGS}/collect_test/{{setting}}.log",
        benchmark:
            f"{JOBS}/collect_test/{{setting}}.tsv"
        wildcard_constraints:
            setting=one_of(set(SETTINGS) - MEMBERS),
        conda:
            "../../envs/megavoxel.yaml"
        container:
            CPU_IMAGE
        resources:
            mem_mb=by_attempt(2000),
            runtime=by_attempt(30),
        params:
            maps=lambda wildcards, input: [f"{part}/maps" for part in input.parts],
            products=collected_option,
        shell:
            "megavoxel predict --collect {params.maps:q} --output {output.predictions:q} {params.products} > {log:q} 2>&1"

    use rule collect_test as collect_test_for_ensembles with:
        output:
            **confidence_of("confidence-test"),
            predictions=predicted_test(f"{RESULTS}/{{setting}}"),
            logits=logits_of("test"),
        wildcard_constraints:
            setting=one_of(MEMBERS),
