"""Whole stages on a pretended GPU: run by `rehearsal.py` in a process of its own.

python stages.py FOLDER [NAME…] prints a line of JSON for each thing that it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from made_jobs import equal, failure, made, predict, samples_of, stage, told_to_end, train
from pretended_tensor import CONTEXT_BYTES, memory

from helpers import tiny_plan
from megavoxel.config.records import to_plain
from megavoxel.config.setting import Inference
from megavoxel.files import write_json
from megavoxel.forecast import calibration
from megavoxel.planning.plan import PhasePlan
from megavoxel.tasks.classification.plan import save_classifier_plan
from small_images import classifier, image_cases, write_folders

GPU = "cuda"
PHASES = (
    PhasePlan(patch=(12, 16, 16), batch=4, epochs=1, learning_rate=0.02),
    PhasePlan(patch=(8, 8, 8), batch=2, epochs=1, learning_rate=0.01),
)


def manifest(folder: Path) -> dict:
    """The manifest of what was trained on the GPU."""
    return json.loads((folder / GPU / "manifest.json").read_text())


@contextlib.contextmanager
def shared_card(*, free_mebibytes: float) -> Iterator[None]:
    """GPUs of which other processes have left so much."""
    memory.others = memory.limit - CONTEXT_BYTES - round(free_mebibytes * 2**20)
    os.environ["REHEARSAL_OTHERS_GIB"] = str(memory.others / 2**30)  # for processes that are started meanwhile
    try:
        yield
    finally:
        memory.others = 0
        del os.environ["REHEARSAL_OTHERS_GIB"]


def resuming(folder: Path) -> dict:
    """A run that is told to end within an epoch goes on to the weights of an uninterrupted one."""
    made(folder, tiny_plan())
    with told_to_end(after_samples=3):
        told = failure(partial(train, folder, GPU, state="interrupted"))
    resumed = train(folder, GPU, state="interrupted")
    whole = train(folder, GPU, state="whole")
    again = train(folder, GPU, state="whole")
    on_cpu = train(folder, "cpu")
    return {
        "told": told, "equal": equal(resumed, whole), "again": equal(again, whole), "cpu": equal(on_cpu, whole),
        "manifest": manifest(folder),
    }  # fmt: skip


def workers(folder: Path) -> dict:
    """Samples that other processes read are the same."""
    made(folder, tiny_plan(training={"workers": 2}))
    return {"equal": equal(train(folder, GPU), train(folder, "cpu"))}


def curriculum(folder: Path) -> dict:
    """Phases with a patch and a batch each; the second one is the smaller."""
    last = PHASES[-1]
    training = {"epochs": 1, "learning_rate": last.learning_rate}
    made(folder, tiny_plan(patch=last.patch, batch=last.batch, phases=PHASES, training=training))
    weights, peak = train(folder, GPU), manifest(folder)["peak_memory"]
    rows = (folder / GPU / "history.csv").read_text().splitlines()
    column = rows[0].split(",").index("peak_memory_mib")
    return {
        "equal": equal(weights, train(folder, "cpu")), "peak": peak,
        "peaks": [float(row.split(",")[column]) for row in rows[1:]],
    }  # fmt: skip


def prediction(folder: Path) -> dict:
    """Label maps of the GPU beside those of the CPU, of one network and of the mean of two, and their time."""
    made(folder, tiny_plan())
    train(folder, GPU)
    weights = folder / GPU / "model.pt"
    apart = {}
    for name, networks in {"one": [weights], "two": [weights, weights]}.items():
        maps = [predict(folder, device, f"{name}-{device}", networks) for device in (GPU, "cpu")]
        apart[name] = float(np.mean(maps[0] != maps[1]))
    stage("time", *samples_of(folder), "--split", "test", "--fold", 0, "--weights", weights, "--output",
          folder / "time.csv", "--repeats", 1, "--warm-up", 1, "--device", GPU)  # fmt: skip
    labels = sorted(int(label) for label in np.unique(maps[0]))
    return {"apart": apart, "timed": len((folder / "time.csv").read_text().splitlines()) - 1, "labels": labels}


def out_of_memory(folder: Path) -> dict:
    """What each stage says where the card is too small."""
    made(folder, replace(tiny_plan(), inference=Inference(window="whole")))
    train(folder, GPU)
    calibration.PROBES[GPU] = (SMALL_PROBE,)
    lines = {}
    with shared_card(free_mebibytes=0.3):
        lines["train"] = failure(partial(train, folder, GPU, state="full"))
        lines["predict"] = failure(partial(predict, folder, GPU, "full", [folder / GPU / "model.pt"]))
        lines["calibrate"] = failure(partial(calibrated, folder))
    return lines


SMALL_PROBE = calibration.Probe(patch=(32, 32, 32), batch=2, levels=4, base_features=8)


def calibrated(folder: Path) -> str:
    """What `calibrate` prints of a GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "hardware.yaml", {"devices": {"card": {"kind": "gpu", "memory_gib": 80}}})
    return stage("calibrate", "card", "--hardware", folder / "hardware.yaml", "--device", GPU, "--dry-run")


def calibrate(folder: Path) -> dict:
    """What `calibrate` measures on a card that others use, with room for the smaller of two steps."""
    large = replace(SMALL_PROBE, patch=(64, 64, 64))
    calibration.PROBES[GPU] = (large, SMALL_PROBE)
    with shared_card(free_mebibytes=40):
        return {"told": calibrated(folder)}


def classification(folder: Path) -> dict:
    """A classifier, trained and asked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_folders(folder / "images", 6)
    cases = image_cases(folder / "images", 6)
    write_json(folder / "cases.json", to_plain(cases))
    save_classifier_plan(folder / "plan.json", classifier())
    names = [case.id for case in cases.cases]
    write_json(folder / "splits.json", {"folds": [{"training": names[:4] + names[6:10], "validation": names[4:6]}],
                                        "test": names[10:]})  # fmt: skip
    common = ["--plan", folder / "plan.json", "--cases", folder / "cases.json", "--splits", folder / "splits.json"]
    weights, rows = {}, {}
    for device in (GPU, "cpu"):
        stage("train", *common, "--fold", 0, "--state", folder / f"state-{device}", "--output", folder / device,
              "--device", device)  # fmt: skip
        weights[device] = torch.load(folder / device / "model.pt", weights_only=True)["weights"]
        stage("predict", *common, "--split", "test", "--weights", folder / device / "model.pt", "--output",
              folder / f"{device}.csv", "--device", device)  # fmt: skip
        rows[device] = (folder / f"{device}.csv").read_text()
    pairs = [(weights[GPU][name].float(), other.float()) for name, other in weights["cpu"].items()]
    return {"apart": max(float((one - other).abs().max()) for one, other in pairs), "rows": rows}


ALL = (resuming, workers, curriculum, prediction, out_of_memory, calibrate, classification)

if __name__ == "__main__":
    torch.set_num_threads(1)
    for work in ALL:
        if sys.argv[2:] and work.__name__ not in sys.argv[2:]:
            continue
        begin = time.monotonic()
        try:
            told = work(Path(sys.argv[1]) / work.__name__)
        except Exception:
            told = {"error": traceback.format_exc(limit=-8)}
        print(json.dumps({"name": work.__name__, **told, "seconds": time.monotonic() - begin}), flush=True)
