# The plan of each setting, and the forecast of all.
localrules:
    plan,
    plan_setting,
    plan_training,


rule plan_setting:
    """Choose what the study leaves open of a setting, and see whether it can be trained."""
    input:
        image=used(CPU_IMAGE),
        cases=rules.check.output.cases,
        basis=basis_of_plan,
    output:
        plan=PLAN,
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
        basis="--preprocessing-plan" if SEGMENTS else "--splits",
        setting=setting_of_plan(PLAN, for_prediction=True),
        spread=spread_of_plan(PLAN),
        definition=lambda wildcards, output: as_json(SETTINGS[wildcards.setting]),
        study=STUDY.name,
        dataset=DATASET.name,
        seed=lambda wildcards, output: STUDY.seed,
        # Another device changes nothing that was planned: `needs` of a plan can be set in the site's file.
        device=lambda wildcards, output: device_option() if SEGMENTS else "",
    shell:
        "megavoxel plan --cases {input.cases:q} {params.basis} {input.basis:q} "
        "--definition {params.definition:q} --study-name {params.study:q} --dataset {params.dataset:q} --seed {params.seed} "
        "{params.device} --output {output.plan:q} > {log:q} 2>&1"


use rule plan_setting as plan_training with:
    output:
        plan=TRAINING_PLAN,
    log:
        f"{LOGS}/plan_training/{{setting}}.log",
    benchmark:
        f"{JOBS}/plan_training/{{setting}}.tsv"
    params:
        setting=setting_of_plan(TRAINING_PLAN, for_prediction=False),
        spread=spread_of_plan(TRAINING_PLAN),


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
        nodes="--one-node" if IN_CONTAINERS else "",
        table=f"{RESULTS}/plan.tsv",
    shell:
        "megavoxel estimate --definition {params.definition:q} --hardware {params.hardware:q} "
        "--datasets {params.datasets:q} {params.facts} {params.nodes} --output {params.table:q} 2> {log:q}"
