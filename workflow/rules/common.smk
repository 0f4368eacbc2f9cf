# The study, checked at parse time, and the small functions that rules use. No rules here.
import json
import os
import re
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# The root of the workflow: of this file, not of the Snakefile that may use it as a module. Its own files are found below
# it, outputs in the working directory.
HERE = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
# Rules that are read from a hosting service bring no files: those of the installed package's checkout are taken.
ROOT = HERE.parents[1] if HERE.is_dir() else Path(find_spec("megavoxel").origin).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
# `megavoxel` lies beside the Python that runs Snakemake, also where that environment was not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

from megavoxel.config.config_files import require_readable
from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.hardware import load_device, load_site
from megavoxel.config.records import to_plain
from megavoxel.config.study_file import parse_study, with_memory
from megavoxel.containers.lock import doubt, hash_of_sources, read_lock
from megavoxel.errors import UserError
from megavoxel.evaluation.choice import read_choice, require_ranking
from megavoxel.evaluation.metrics import metrics_of
from megavoxel.files import content_hash
from megavoxel.reporting.closing import closing_words
from megavoxel.reporting.definition import definition_of
from snakemake.settings.types import DeploymentMethod

BEGAN = time.time()
# A configuration that was deployed to the working directory takes the place of the workflow's own.
CONFIG_FOLDER = Path("config") if Path("config/hardware.yaml").is_file() else ROOT / "config"
IN_CONTAINERS = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method


def load_metrics(study, dataset, *, where):
    """The metrics of each label, and the keys of all metrics; nothing of a study of classification."""
    if study.task == "classification":
        return None, ()
    labels = None if dataset.label_scheme is None else list(dataset.label_scheme.structures)
    choice = read_choice(study.metrics, where=where, labels=labels)
    metrics = choice.of_all(labels)
    require_ranking(metrics, where=where)
    return choice, tuple(metric.key for metric in metrics)


def load_configuration():
    """The study with its dataset file, device and site, or one line that says what is wrong."""
    source = os.path.relpath((workflow.overwrite_configfiles or [CONFIG_FOLDER / "config.yaml"])[0])
    try:
        require_readable(map(Path, workflow.overwrite_configfiles))
        study = parse_study({key: value for key, value in config.items()}, source=source)
        dataset_file = dataset_path(study.dataset, CONFIG_FOLDER / "datasets", source=source)
        dataset = load_dataset(dataset_file)
        device = load_device(CONFIG_FOLDER / "hardware.yaml", study.hardware, source=source)
        site = load_site(Path(os.environ.get("MEGAVOXEL_SITE") or ROOT / "slurm/site.yaml"))
        choice, metrics = load_metrics(study, dataset, where=f"{source}: metrics")
    except UserError as error:
        sys.exit(f"Error: {error}")
    if study.task != dataset.task:
        sys.exit(f"Error: {source}: dataset: {dataset.name} is not for a study of 'task: {study.task}'")
    return study, os.path.relpath(dataset_file), dataset, device, site, choice, metrics


STUDY, DATASET_FILE, DATASET, DEVICE, SITE, CHOICE, METRICS = load_configuration()
SEGMENTS = STUDY.task == "segmentation"
# Whether a metric counts components: then there is a table of them beside the scores of each part.
HAS_LESIONS = any(metric.of_components for metric in metrics_of(METRICS, where="metrics"))
# How the metrics of the labels are given to `evaluate`, and the keys of all of them.
METRICS_OPTION = f"--metrics {shlex.join(CHOICE.words)}" if SEGMENTS else ""
RESULTS = f"results/{STUDY.name}"
DATA = f"data/{DATASET.name}"
LOGS = f"logs/{STUDY.name}"
JOBS = f"benchmarks/jobs/{STUDY.name}"
# What makes repeats cheap and is no result: training states, logits of members, cases of predictions that go on.
STATE = f"state/{STUDY.name}"
# The plan of a setting, and the same for training, which is not made again where only prediction changes.
PLAN = f"{RESULTS}/{{setting}}/plan.json"
TRAINING_PLAN = f"{STATE}/{{setting}}/plan.json"
CHECKSUMS = f"{DATA}/checksums.tsv"
MIRROR = config.get("mirror", "")
STUDY_DEVICE = config.get("device", "auto")
CONTAINERS = os.path.relpath(ROOT / "containers")
CPU_IMAGE = f"{CONTAINERS}/images/cpu.sif"
# Training and prediction: a study for CPUs needs no second image.
GPU_IMAGE = f"{CONTAINERS}/images/gpu.sif" if DEVICE.gpus else CPU_IMAGE
SETTINGS = {setting.name: setting for setting in STUDY.settings}
# As `plan` is told of them: patch and batch that the study leaves open depend on the memory of its device.
PLANNED = (
    SETTINGS if not SEGMENTS else {setting.name: setting for setting in with_memory(STUDY, DEVICE.memory_gib).settings}
)
ENSEMBLES = {ensemble.name: ensemble for ensemble in STUDY.ensembles}
CASCADES = {setting.name for setting in STUDY.settings if SEGMENTS and setting.stage1}
# Settings of whose predictions the logits are kept: ensembles of label maps average them.
MEMBERS = {member for ensemble in STUDY.ensembles for member in ensemble.members if SEGMENTS}
# Whether predictions say how far their probabilities can be trusted.
HAS_CONFIDENCE = SEGMENTS and STUDY.confidence
WEIGHTS = {} if SEGMENTS else STUDY.weights
# Files of weights that settings begin with, or folders of them.
STARTS = [setting.start.file for setting in STUDY.settings if SEGMENTS and setting.start and not setting.start_setting]
# Files beside the study's and the dataset's: ready-made folds, and tables of cases with groups, pictures, subgroups.
READY_SPLITS = SEGMENTS and STUDY.splits or []
CASE_TABLES = [
    entry.table for entry in (DATASET.groups, DATASET.pictures, DATASET.subgroups) if hasattr(entry, "table")
]
# What is predicted of some cases: a folder of label maps, or a table of probabilities.
PREDICTIONS = "" if SEGMENTS else ".csv"
# Training and prediction of images read them where they lie; preprocessed volumes need no list.
IMAGE_LIST = [] if SEGMENTS else f"{RESULTS}/cases.json"


def dataset_file(wildcards, output):
    """The dataset file, as an option. Asked with `output` it triggers no job: its content does, by parts."""
    return DATASET_FILE


def preprocessing_key(setting):
    """Settings with the same `preprocessing` keys share one folder of preprocessed cases."""
    return content_hash(to_plain(SETTINGS[setting].preprocessing))


def preprocessed_folder(wildcards):
    """The folder of a setting's preprocessed cases."""
    return f"{RESULTS}/preprocessed/{preprocessing_key(wildcards.setting)}/cases"


def predicted(path):
    """An output: the predictions of some cases, at this path without a suffix."""
    return directory(path) if SEGMENTS else f"{path}{PREDICTIONS}"


def predicted_test(folder):
    """An output: the predictions of the test cases; label maps are still to be post-processed."""
    return directory(f"{folder}/test-raw") if SEGMENTS else f"{folder}/test{PREDICTIONS}"


def logits_of(cases):
    """An output: the logits of some cases of a setting, for ensembles."""
    folder = directory(f"{STATE}/{{setting}}/logits/{cases}")
    return folder if SEGMENTS and STUDY.keep_logits else temp(folder)


def confidence_of(folder):
    """An output, where the study asks for it: how far the probabilities of some cases of a setting can be trusted."""
    return {"confidence": directory(f"{RESULTS}/{{setting}}/{folder}")} if HAS_CONFIDENCE else {}


def samples_option(wildcards, input):
    """What a stage is told of the cases that it trains on or predicts."""
    if SEGMENTS:
        return f"--preprocessed {shlex.quote(preprocessed_folder(wildcards))}"
    return f"--cases {shlex.quote(input.cases)}"


def terminal_option(name):
    """Has a stage show what it says on the terminal too, under a name, where Snakemake runs on one."""
    return f"--terminal {shlex.quote(name)}" if sys.stderr.isatty() else ""


def resuming_option(wildcards):
    """What `predict` is told of its share of the cases, and of where those are that an earlier attempt finished."""
    if not SEGMENTS:
        return ""
    name = f"fold-{wildcards.fold}" if wildcards.get("fold") else "test"
    folder = shlex.quote(f"{STATE}/{wildcards.setting}/predicted/{name}")
    share = f"--part {wildcards.share} --parts {wildcards.total} " if wildcards.get("share") else ""
    # Logits that are not to stay would stay there.
    keep = "" if wildcards.setting in MEMBERS and not STUDY.keep_logits else " --keep"
    return f"{share}--resume {folder}{keep}"


def products_option(wildcards, output):
    """Where `predict` writes what it makes beside label maps; of a part of the test cases, into one folder with them."""
    if wildcards.get("share"):
        wanted = ["logits"] if wildcards.setting in MEMBERS else []
        folders = {name: f"{output.predictions}/{name}" for name in wanted + ["confidence"] * HAS_CONFIDENCE}
    else:
        folders = {name: output[name] for name in ("logits", "confidence") if output.get(name)}
    return " ".join(f"--{name} {shlex.quote(str(folder))}" for name, folder in folders.items())


def collected_option(wildcards, input, output):
    """What `predict --collect` is told of what the parts have beside label maps."""
    made = {name: [f"{part}/{name}" for part in input.parts] for name in ("logits", "confidence") if output.get(name)}
    return " ".join(
        f"--collect-{name} {shlex.join(parts)} --{name} {shlex.quote(str(output[name]))}"
        for name, parts in made.items()
    )


def device_of_job(wildcards, output):
    """Where a job of the study's device computes: on a GPU that must be there, unless the study is tried without."""
    device = "cuda" if DEVICE.gpus and STUDY_DEVICE == "auto" else STUDY_DEVICE
    return f"--device {device}"


def split_option(wildcards):
    """What a stage is told of the cases: those of a fold's validation, or of the test split where there is no fold."""
    return f"--split validation --fold {wildcards.fold}" if wildcards.get("fold") else "--split test"


def lesions_option(wildcards, output):
    """Where `evaluate` writes the table of lesions."""
    return f"--lesions {shlex.quote(output.lesions)}" if HAS_LESIONS else ""


def checked_metrics_option(wildcards, output):
    """What `split` is told of metrics by label, which it holds against the labels before anything is trained."""
    return METRICS_OPTION if SEGMENTS and CHOICE.named else ""


def tolerance_option(wildcards):
    """What `evaluate` is told of the tolerances of NSD."""
    if not SEGMENTS:
        return ""
    tolerances = DATASET.nsd_tolerance_mm
    words = [f"{name}={mm}" for name, mm in tolerances.items()] if isinstance(tolerances, dict) else [str(tolerances)]
    return f"--nsd-tolerance {shlex.join(words)}"


def recorded_tolerances_option(wildcards, output):
    """What the collection of scores is told of these tolerances, and where to record them."""
    return f"{tolerance_option(wildcards)} --tolerances {shlex.quote(output.tolerances)}" if SEGMENTS else ""


def name_of(wildcards):
    """What scores call a setting or an ensemble."""
    return wildcards.model.removeprefix("ensembles/")


def preprocessed_cases(wildcards):
    """The marker that a setting's training and prediction wait for; images are not preprocessed."""
    return f"{RESULTS}/preprocessed/{preprocessing_key(wildcards.setting)}/done.json" if SEGMENTS else []


def basis_of_plan(wildcards):
    """An input function: `basis_of` for the setting of a job."""
    return basis_of(wildcards.setting)


def basis_of(setting):
    """What a setting is planned from beside the cases: how volumes are preprocessed, or how images are split."""
    if SEGMENTS:
        return f"{RESULTS}/preprocessed/{preprocessing_key(setting)}/plan.json"
    return f"{RESULTS}/splits.json"


def of_members(pattern):
    """An input function: `pattern` for each member of the ensemble; {member} and {fold} are filled in."""
    return lambda wildcards: expand(
        pattern, member=ENSEMBLES[wildcards.ensemble].members, fold=wildcards.get("fold", "")
    )


def of_each_member(folder, predictions, logits):
    """Inputs of an ensemble: what is averaged of each member, in a folder below that of the setting."""
    place = f"{RESULTS}/{{member}}/{folder}".rstrip("/")
    if not SEGMENTS:
        return {"probabilities": of_members(f"{place}/{predictions}{PREDICTIONS}")}
    return {
        "logits": of_members(f"{STATE}/{{member}}/logits/{logits}"),
        "predictions": of_members(f"{place}/{predictions}"),
        "postprocessing": of_members(f"{RESULTS}/{{member}}/postprocessing.json"),
    }


def averaged_option(wildcards, input):
    """What the ensemble stage is told of its inputs."""
    names = ("logits", "predictions", "postprocessing") if SEGMENTS else ("probabilities",)
    return " ".join(f"--{name} {shlex.join(input[name])}" for name in names)


def of_first_stage(pattern):
    """An input function: `pattern` for each first-stage setting of a cascade; {first} and {fold} are filled in."""
    return lambda wildcards: expand(pattern, first=SETTINGS[wildcards.setting].stage1, fold=wildcards.get("fold", ""))


def first_stage_of_all_folds(wildcards):
    """The first stage's labels of all cases that a second stage trains and validates on; nothing for other settings."""
    folds = range(STUDY.folds) if wildcards.setting in CASCADES else ()
    return expand(f"{RESULTS}/{wildcards.setting}/stage1/fold-{{fold}}", fold=folds)


def first_stage_of(cases):
    """An input function: the first stage's labels of the cases to predict; {fold} is filled in."""
    return lambda wildcards: expand(
        f"{RESULTS}/{{setting}}/stage1/{cases}",
        setting=[wildcards.setting] if wildcards.setting in CASCADES else [],
        fold=wildcards.get("fold", ""),
    )


def first_stage_option(wildcards, input):
    """What a stage is told of a cascade's first stage."""
    return f"--stage1 {shlex.join(input.stage1)}" if input.get("stage1") else ""


def starting_weights(wildcards):
    """The weights that training begins with: another setting's, or published ones; nothing where they are random."""
    setting = SETTINGS[wildcards.setting]
    if not SEGMENTS:
        return f"data/weights/{setting.network}.pth" if setting.pretrained else []
    if setting.start_setting is not None:
        return f"{RESULTS}/{setting.start}/fold-{wildcards.fold}/model.pt"
    return [] if setting.start is None else os.path.relpath(setting.start.of_fold(wildcards.fold))


def as_json(record):
    """A dataclass as one line of JSON, for the command line of a stage."""
    return json.dumps(to_plain(record), sort_keys=True)


def one_of(names):
    """A wildcard constraint: one of these names, or nothing at all."""
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def folds_of(model):
    """The folds of a setting, or of an ensemble given as ensembles/NAME."""
    if model in SETTINGS:
        return STUDY.folds_of(SETTINGS[model])
    return STUDY.folds_of_ensemble(ENSEMBLES[model.removeprefix("ensembles/")])


def postprocessing_option(model):
    """What the postprocess stage is told where the study switches it off, or has no cases to find out on."""
    record = SETTINGS.get(model) or ENSEMBLES[model.removeprefix("ensembles/")]
    return "" if record.postprocess and STUDY.validates else "--disabled"


def timed_runs():
    """Networks whose predictions are timed: of test cases that of each setting's first fold, else all of them."""
    if not SEGMENTS or STUDY.timing is None:
        return []
    every = STUDY.timing.split == "validation"
    return [(setting, fold) for setting in SETTINGS for fold in (folds_of(setting) if every else folds_of(setting)[:1])]


def used(image):
    """An image as an input, where images are used: Snakemake itself would know it by its name, and not see a new one."""
    return image if IN_CONTAINERS else []


def index_of_wheels(wildcards, output):
    """Where pip looks as well for the packages of an image; asked with `output`, it triggers no job, as for `mirror`."""
    index = config.get(f"{wildcards.kind}_index")
    return f"--index {shlex.quote(index)}" if index else ""


def enter_containers(images, lock):
    """Makes sure that the images are there, and tells Apptainer of GPUs and of folders outside of the working directory."""
    missing = [image for image in images if not os.path.exists(image)]
    if missing:
        sys.exit(f"Error: {missing[0]} is not there; build it first, without --sdm apptainer: snakemake images")
    if workflow.is_main_process and Path(lock).is_file():
        warn_of_doubtful_images(images, lock)
    if DEVICE.gpus:
        os.environ.update(APPTAINER_NV="1")
    os.environ.update(APPTAINER_BIND=",".join(filter(None, [os.environ.get("APPTAINER_BIND"), *folders_outside()])))


def folders_outside():
    """Folders that stages read or write and that do not lie in the working directory, behind links as well."""
    read = [MIRROR, DATASET.source.folder, os.path.expandvars(SITE.scratch or ""), CONFIG_FOLDER]
    files = [DATASET_FILE, READY_SPLITS, *CASE_TABLES, *(found.file for found in WEIGHTS.values()), *STARTS]
    read += [os.path.dirname(path) for path in files if path]
    written = [RESULTS, DATA, LOGS, JOBS, STATE]
    folders = [os.path.realpath(folder) for folder in (*read, *written, *map(os.path.dirname, written)) if folder]
    here = Path.cwd().resolve()
    return sorted({folder for folder in folders if os.path.isdir(folder) and not Path(folder).is_relative_to(here)})


def warn_of_doubtful_images(images, lock):
    """Says which images were built from other sources than those of this checkout, or are not those of the lock."""
    records, sources = read_lock(Path(lock)), hash_of_sources(ROOT)
    for image in images:
        reason = doubt(Path(image), records.get(os.path.basename(image), {}), sources=sources)
        if reason:
            print(f"Warning: {image} {reason}", file=sys.stderr)


def track():
    """Brings the curves of the runs that there are to the study's tracking programs; what they refuse is only said."""
    where = [(f"--{name}", value) for name, value in to_plain(STUDY.tracking or {}).items() if value]
    if not where or not any(Path(RESULTS).glob("*/fold-*/history.csv")):
        return
    command = ["megavoxel", "track", RESULTS, *(word for option in where for word in option)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().removeprefix("megavoxel track: error: ")
        print(f"Warning: tracking: {said}", file=sys.stderr, flush=True)


def device_option():
    """The device, and the folds that a forecast on it wants to know; jobs in containers stay on one node."""
    device = DEVICE.on_one_node() if IN_CONTAINERS else DEVICE
    return f"--device {shlex.quote(as_json(device))} --folds {STUDY.folds}"


def facts_for_planning():
    """Cases and fingerprint as inputs of a forecast, but where the dataset's file declares what it needs of them."""
    facts = {"cases": f"{RESULTS}/cases.json", "fingerprint": f"{RESULTS}/fingerprint.json"}
    return {} if DATASET.known_ahead and not all(map(os.path.exists, facts.values())) else facts


# What is predicted, scored and reported: of a setting with the network of all cases alone, nothing.
COMPARED_SETTINGS = [name for name in SETTINGS if folds_of(name)]
MODELS = [*COMPARED_SETTINGS, *(f"ensembles/{name}" for name in ENSEMBLES)]
# Networks that are trained on all cases.
OF_ALL_CASES = [
    f"{RESULTS}/{name}/fold-{fold}/model.pt"
    for name, setting in SETTINGS.items()
    for fold in STUDY.networks_of(setting)
    if fold not in folds_of(name)
]
PREPROCESSINGS = {preprocessing_key(name): SETTINGS[name].preprocessing for name in SETTINGS if SEGMENTS}
FACTS = facts_for_planning()
VALIDATED = [(model, fold) for model in MODELS for fold in folds_of(model) if STUDY.validates]
RUNS = [(setting, fold) for setting in COMPARED_SETTINGS for fold in folds_of(setting)]
TIMINGS = [f"{RESULTS}/{setting}/fold-{fold}/timings.csv" for setting, fold in timed_runs()]


wildcard_constraints:
    setting=one_of(SETTINGS),
    ensemble=one_of(ENSEMBLES),
    model=one_of(MODELS),
    preprocessing=one_of(PREPROCESSINGS),
    network=one_of(WEIGHTS),
    fold=r"\d+",
    share=r"\d+",
    total=r"\d+",
