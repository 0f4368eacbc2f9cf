# Seconds of inference, for studies with `timing`.
localrules:
    collect_timings,


rule time_prediction:
    """Seconds per image of a fold's network; nothing else should run on the device meanwhile."""
    input:
        image=used(GPU_IMAGE),
        plan=PLAN,
        splits=rules.split.output.splits,
        preprocessed=preprocessed_cases,
        stage1=first_stage_of("fold-{fold}" if STUDY.timing and STUDY.timing.split == "validation" else "test"),
        weights=rules.train.output.model,
    output:
        timings=f"{RESULTS}/{{setting}}/fold-{{fold}}/timings.csv",
    log:
        f"{LOGS}/time_prediction/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/time_prediction/{{setting}}-{{fold}}.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: DEVICE.cpus_per_job
    resources:
        **on_devices("prediction", predicting_devices_of, times=STUDY.timing.repeats + 1 if STUDY.timing else 1),
    params:
        samples=samples_option,
        stage1=first_stage_option,
        launcher=launcher,
        device=device_of_job,
        split=STUDY.timing.split if STUDY.timing else "test",
        repeats=STUDY.timing.repeats if STUDY.timing else 1,
        warm_up=STUDY.timing.warm_up if STUDY.timing else 0,
    shell:
        "{params.launcher} megavoxel time --plan {input.plan:q} --weights {input.weights:q} --splits {input.splits:q} "
        "--split {params.split} --fold {wildcards.fold} {params.samples} {params.stage1} "
        "--repeats {params.repeats} --warm-up {params.warm_up} --output {output.timings:q} "
        "{params.device} --threads {resources.cpus_per_task} > {log:q} 2>&1"


rule collect_timings:
    """All timings of the study in one table."""
    input:
        image=used(CPU_IMAGE),
        timings=TIMINGS,
    output:
        timings=f"{RESULTS}/timings.csv",
    log:
        f"{LOGS}/collect_timings.log",
    benchmark:
        f"{JOBS}/collect_timings.tsv"
    conda:
        "../../envs/megavoxel.yaml"
    container:
        CPU_IMAGE
    resources:
        mem_mb=by_attempt(2000),
        runtime=by_attempt(30),
    shell:
        "megavoxel time --collect {input.timings:q} --output {output.timings:q} > {log:q} 2>&1"
