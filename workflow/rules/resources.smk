# What jobs ask for: by attempt, by the devices of a setting, and what the site adds where they are GPUs. No rules here.
from megavoxel.config.records import from_plain
from megavoxel.config.setting import Parallel
from megavoxel.planning.needs import Needs, cpus, memory_mb, runtime_minutes
from megavoxel.planning.plan import Plan
from megavoxel.planning.patch import WHOLE, predicting_devices

GPU_MODEL = SITE.gpu.get("gpu_model", DEVICE.gpu_model) if DEVICE.gpus else None
OWN_KEYS = ("gpu_model", "ask_by")
ADDED_FOR_GPUS = {name: value for name, value in SITE.gpu.items() if DEVICE.gpus and name not in OWN_KEYS}
# Rules whose jobs ask for what the plan of their setting needs.
BY_SETTING = {
    *("train", "predict_validation", "predict_validation_for_ensembles"),
    *("predict_test", "predict_test_for_ensembles", "time_prediction"),
}


def refuse_unequal_arrays(site, words):
    """Ends where job arrays are asked for that Slurm would give too little: all tasks get what the first one asks for.

    Args:
        site: of the cluster, whose options may ask for arrays.
        words: of the command line, which may as well.
    """
    given = [after for word, after in zip(words, words[1:]) if word == "--slurm-array-jobs"]
    given += [word.partition("=")[2] for word in words if word.startswith("--slurm-array-jobs=")]
    asked = re.split("[,;] *", str((given or [site.options.get("slurm-array-jobs", "")])[-1]))
    unequal = sorted(BY_SETTING if "all" in asked else BY_SETTING.intersection(asked))
    if unequal and len(SETTINGS) > 1:
        sys.exit(
            f"Error: slurm-array-jobs: jobs of {unequal[0]} differ by setting, and Slurm gives all tasks of an array what "
            "the first one asks for; name rules of equal jobs, such as preprocess, evaluate_validation, ensemble_validation"
        )


if workflow.is_main_process:
    refuse_unequal_arrays(SITE, sys.argv)


def by_attempt(amount):
    """A resource that grows with each attempt of a job."""
    return lambda wildcards, attempt: amount * attempt


def needs_of(kind, input):
    """What the setting's plan says of `training` or `prediction`; None: nothing. Of a classifier it says nothing."""
    needs = planned(input).get("needs") if SEGMENTS else None
    return None if needs is None else getattr(from_plain(Needs, needs, where=input.plan), kind)


def planned(input):
    """The setting's plan. Before there is one, a dry run shows TBD for what depends on it."""
    return json.loads(Path(input.plan).read_text())


def on_devices(kind, devices, times=1):
    """Resources of a job on the study's devices: `training`, or `prediction` that is done so many times.

    How many devices they are `devices` says, of wildcards and input. On several nodes there is a task on each, which
    starts the processes there: `gpu` would be a total, spread as Slurm likes, and would multiply the tasks.
    """

    def nodes(wildcards, input):
        return DEVICE.nodes(devices(wildcards, input))

    def devices_of_a_node(wildcards, input):
        return devices(wildcards, input) // nodes(wildcards, input)

    def of_processes(amount):
        return lambda wildcards, input, attempt: amount(input, attempt) * devices_of_a_node(wildcards, input)

    def by_gres(wildcards, input):
        return SITE.asks_by_gres or nodes(wildcards, input) > 1

    def in_total(value):
        return lambda wildcards, input: None if by_gres(wildcards, input) else value(wildcards, input)

    def per_node(value):
        return lambda wildcards, input: value(wildcards, input) if by_gres(wildcards, input) else None

    def on_several_nodes(value):
        return lambda wildcards, input: value(wildcards, input) if nodes(wildcards, input) > 1 else None

    def gres(wildcards, input):
        model = f"{GPU_MODEL}:" if GPU_MODEL else ""
        return f"gpu:{model}{devices_of_a_node(wildcards, input)}" if DEVICE.gpus else None

    return {
        # Threads cannot wait for a plan, resources can.
        "cpus_per_task": of_processes(lambda input, attempt: cpus(needs_of(kind, input), DEVICE)),
        "gpu": in_total(lambda wildcards, input: DEVICE.gpus * devices_of_a_node(wildcards, input)),
        "gpu_model": in_total(lambda wildcards, input: GPU_MODEL),
        "nodes": nodes,
        "mpi": on_several_nodes(lambda wildcards, input: "srun"),
        "tasks": on_several_nodes(nodes),
        "gres": per_node(gres),
        "tasks_per_gpu": per_node(lambda wildcards, input: 0),
        "mem_mb": of_processes(lambda input, attempt: memory_mb(needs_of(kind, input), DEVICE, attempt=attempt)),
        "runtime": lambda wildcards, input, attempt: runtime_minutes(
            needs_of(kind, input), DEVICE, attempt=attempt, times=times
        ),
        **ADDED_FOR_GPUS,
    }


def launcher(wildcards, resources):
    """What starts the stage once on every node of a job; nothing where there is one node."""
    if not resources.get("mpi"):
        return ""
    if IN_CONTAINERS:
        sys.exit(f"Error: a job of {wildcards.setting} takes several nodes, which --sdm apptainer cannot start")
    gpus = f" --gres={resources.gres}" if resources.get("gres") else ""
    return (
        f"{resources.mpi} --nodes={resources.nodes} --ntasks={resources.nodes} "
        f"--cpus-per-task={resources.cpus_per_task}{gpus} --kill-on-bad-exit=1"
    )


def training_devices(wildcards, input):
    """Devices of a training job: as the study says, or as the setting's plan does."""
    parallel = SETTINGS[wildcards.setting].parallel
    if parallel is not None:
        return parallel.devices
    return from_plain(Parallel, planned(input)["parallel"], where=input.plan).devices


def predicting_devices_of(wildcards, input):
    """Devices of a job that predicts: the plan is read where the study file alone does not tell."""
    if not SEGMENTS:
        return 1
    setting = SETTINGS[wildcards.setting]
    parallel, window = setting.parallel, setting.inference.window
    whole = WHOLE in (setting.last_patch, window)
    if parallel is not None and (whole or parallel.devices_of_a_patch == 1):
        return parallel.devices_of_a_patch
    if parallel is not None and window is None and parallel.tiles == 1:
        return 1
    return predicting_devices(from_plain(Plan, planned(input), where=input.plan))
