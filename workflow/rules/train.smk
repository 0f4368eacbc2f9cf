# One job per setting and fold; with several devices the stage starts a process for each, with several nodes on each of
# them. Its states lie outside of the declared outputs: a killed or repeated job finds them.
rule train:
    input:
        image=used(GPU_IMAGE),
        plan=TRAINING_PLAN,
        splits=rules.split.output.splits,
        checksums=rules.fetch.output.checksums,
        cases=IMAGE_LIST,
        preprocessed=preprocessed_cases,
        stage1=first_stage_of_all_folds,
        weights=starting_weights,
    output:
        model=f"{RESULTS}/{{setting}}/fold-{{fold}}/model.pt",
        history=f"{RESULTS}/{{setting}}/fold-{{fold}}/history.csv",
        manifest=f"{RESULTS}/{{setting}}/fold-{{fold}}/manifest.json",
    log:
        f"{LOGS}/train/{{setting}}-{{fold}}.log",
    benchmark:
        f"{JOBS}/train/{{setting}}-{{fold}}.tsv"
    wildcard_constraints:
        fold=r"\d+|all",
    conda:
        "../../envs/megavoxel.yaml"
    container:
        GPU_IMAGE
    threads: lambda wildcards: DEVICE.cpus_per_job * (1 if SEGMENTS else SETTINGS[wildcards.setting].workers)
    resources:
        **on_devices("training", training_devices),
    params:
        samples=samples_option,
        stage1=first_stage_option,
        weights=lambda wildcards, input: f"--weights {shlex.quote(input.weights)}" if input.get("weights") else "",
        state=f"state/{STUDY.name}/{{setting}}/fold-{{fold}}",
        folder=subpath(output.model, parent=True),
        # Asked with `output`, these trigger no job, as for `mirror`: they are for what is said.
        terminal=lambda wildcards, output: terminal_option(f"{wildcards.setting}, fold {wildcards.fold}"),
        hardware=lambda wildcards, output: shlex.join([os.path.relpath(CONFIG_FOLDER / "hardware.yaml"), DEVICE.name]),
        launcher=launcher,
        device=device_of_job,
    # Slurm tells all processes of a job to end. The shell must outlive training, which has a state to write.
    shell:
        "trap : TERM USR1; {params.launcher} megavoxel train --plan {input.plan:q} {params.samples} "
        "--splits {input.splits:q} --fold {wildcards.fold} {params.stage1} {params.weights} --checksums {input.checksums:q} "
        "--state {params.state:q} --output {params.folder:q} --hardware {params.hardware} {params.device} "
        "{params.terminal} --threads {resources.cpus_per_task} > {log:q} 2>&1"
