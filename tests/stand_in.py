"""Stages that only write the shapes of their outputs, each with the words that it was called with; the others are real.

Text of a program `megavoxel`, for studies that are finished in seconds.
"""

from __future__ import annotations

TEXT = '''\
#!{python} -IS
import json, os, sys
from pathlib import Path

stage, words = sys.argv[1], sys.argv[2:]


def values(option):
    """The words behind an option, up to the next one."""
    start = words.index(option) + 1 if option in words else len(words)
    end = next((n for n in range(start, len(words)) if words[n].startswith("--")), len(words))
    return words[start:end]


def value(option):
    return (values(option) or [""])[0]


def write(path, text=" ".join(sys.argv[1:])):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def real():
    os.execv({megavoxel!r}, [{megavoxel!r}, *sys.argv[1:]])


def folder(option, *names):
    if value(option):
        Path(value(option)).mkdir(parents=True, exist_ok=True)
        for name in names:
            write(Path(value(option)) / name)


def cases():
    splits = json.loads(Path(value("--splits")).read_text())
    if value("--split") == "test":
        return splits["test"][int(value("--part") or 0) :: int(value("--parts") or 1)]
    return splits["folds"][int(value("--fold"))]["validation"]


def report():
    study = json.loads(value("--definition"))
    root = Path(value("--results")) / "report"
    tables = ["summary", "comparison", "best", "ranking", "subgroups", "labels", "cost", "sweeps", "inference_time"]
    tables += ["published"]
    figures = [*(metric + "_by_label" for metric in study["metrics"]), "training_curves"]
    figures += [study["metrics"][0] + "_against_memory"] + ["sweep-" + sweep["name"] for sweep in study["sweeps"]]
    figures += [study["metrics"][0] + "_against_seconds"] if "--timings" in words else []
    for name in tables:
        for kind in ("csv", "md", "tex"):
            write(root / "tables" / (name + "." + kind))
    for name in figures:
        for kind in ("png", "svg"):
            write(root / "figures" / (name + "." + kind))
    for name in [*study["settings"], *study["ensembles"]]:
        write(root / "figures/overlays" / (name + ".png"))
    (root / "figures/comparisons").mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "methods.md", "references.bib", "claim.md"):
        write(root / name)


if "--collect" in words and stage != "time":
    real()
if stage == "preprocess":
    plan, shard, shards = Path(value("--plan")), int(value("--shard")), int(value("--shards"))
    every = sorted(case["id"] for case in json.loads(Path(value("--cases")).read_text())["cases"])
    marker = dict(plan=plan.read_text(), shard=shard, shards=shards, cases=every[shard::shards])
    write(value("--output"), json.dumps(marker))
elif stage == "train":
    folder("--output", "history.csv", "manifest.json", "model.pt")
elif stage == "predict":
    folder("--output", *(case + ".nii.gz" for case in cases()))
    folder("--logits", *(case + ".json" for case in cases()))
elif stage in ("stage1", "ensemble") or (stage == "postprocess" and "--apply" in words):
    folder("--output", "case")
elif stage == "evaluate":
    row = ",".join([value("--setting"), value("--split"), value("--fold") or "all", "a", "liver", "DSC", "0.5"])
    write(value("--output"), "setting,split,fold,case,label,metric,value\\n" + row + "\\n")
elif stage in ("time", "postprocess"):
    write(value("--output"))
elif stage == "report":
    report()
else:
    real()
'''
