# The map: configuration, rules, targets. What to run is said in config/, what a stage does in workflow/megavoxel/.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

# A file given by --configfile replaces the demo; Snakemake alone would lay it over the demo's keys.
if not workflow.overwrite_configfiles:

    configfile: Path(workflow.basedir) / "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/ensemble.smk"
include: "workflow/rules/evaluate.smk"


if SEGMENTS:

    include: "workflow/rules/preprocess.smk"
    include: "workflow/rules/stage1.smk"
    include: "workflow/rules/postprocess.smk"
    include: "workflow/rules/time.smk"


include: "workflow/rules/report.smk"
include: "workflow/rules/images.smk"


report: "workflow/report/workflow.rst"


onsuccess:
    print(closing_words(Path(RESULTS), since=BEGAN), end="", flush=True)


onerror:
    print(f"\n'megavoxel status {RESULTS}' shows the last lines of what failed; logs are in {LOGS}/", flush=True)


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/index.html",
