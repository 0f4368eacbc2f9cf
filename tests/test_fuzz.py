"""Broken input of every kind is refused by a message or taken; nothing else happens.

Each example is sound input that was changed in a few places, or input that was made to do harm. It must not end in
another exception than `UserError`, take more than 10 s of processor time or 1 GiB of memory or disk, write outside of
the output folder, start a process, open a connection or unpickle anything (`fuzz_guard.py`). Examples that are known to
be sound must be taken, those that are known not to be must be refused, and what is taken must be what the file holds.

    make fuzz                                    10 000 examples, others each time
    MEGAVOXEL_FUZZ=500 python -m pytest tests/test_fuzz.py -s

Without that variable there are a few hundred, the same each time.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import pickle
import pkgutil
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import megavoxel
from broken_inputs import CSV_PIECES, broken_bytes, broken_documents, broken_json, broken_lines, broken_yaml
from fuzz_bench import CUT, DATASET, HARDWARE, PATIENTS, STUDY, Bench
from fuzz_example import Example
from fuzz_guard import GuardError
from fuzz_parcels import archives, cuts, flips, label_maps, models, pickles, tensors, yamls
from fuzz_scans import scans, sound_scans

TOTAL = int(os.environ.get("MEGAVOXEL_FUZZ", "500"))
FILES = {"study": 0.1, "dataset": 0.06, "dataset.json": 0.1, "volume": 0.12, "checkpoint": 0.06, "contract": 0.06}
"""Shares of the examples that are one known file, changed in a few places."""
INPUTS = {
    "scan": 0.2, "pickle": 0.05, "tensor": 0.02, "flip": 0.06, "model": 0.05, "archive": 0.05, "yaml": 0.03,
    "cut": 0.03, "label map": 0.01,
}  # fmt: skip
"""Shares of the examples that are new files."""
SHARES = FILES | INPUTS
HEADER_BYTES = 352
FEW = 10
"""Examples of a kind of which all may happen to be sound."""
ITK_PIECES = [
    "\nDimSize = 30000 30000 30000\n", "\nsizes: 30000 30000 30000\n", "\nsizes: 0 0 0\n", "\nDimSize = -5 -6 -7\n",
    "\nNDims = 999\n", "\nNDims = 0\n", "\ndimension: 16\n", "\nElementDataFile = LIST\n",
    "\ndata file: x%d 1 999999999 1\n", "\nCompressedDataSize = 99999999999\n", "\nHeaderSize = -1\n",
    "\nline skip: 99999\n", "\nbyte skip: -1\n", "\ntype: double\n", "\ntype: block\nblock size: 99999999\n",
    "\nElementType = MET_DOUBLE\n", "\nElementNumberOfChannels = 100000\n", "\nTransformMatrix = 0 0 0 0 0 0 0 0 0\n",
    "\nElementSpacing = 0 nan 1e400\n", "\nspace: scanner-xyz\n", "\nspace directions: none (0,0,0) (nan,0,0)\n",
    "\nencoding: bzip2\n", "\nBinaryData = False\n", "nan", "-1", "9" * 5000, "\n\n",
]  # fmt: skip
"""What is put into the headers of MetaImage and NRRD files."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Sound files; the working directory and the folder for temporary files are watched as well."""
    root = tmp_path_factory.mktemp("fuzz")
    before = tempfile.tempdir, Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    for module in pkgutil.walk_packages(megavoxel.__path__, "megavoxel."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    made = Bench(root)
    (root / "here").mkdir()
    os.chdir(root / "here")
    tempfile.tempdir = str(made.out)
    yield made
    assert not list((root / "here").iterdir())
    tempfile.tempdir = before[0]
    os.chdir(before[1])
    torch.set_num_threads(before[2])


def readers(bench: Bench) -> dict[str, dict[str, Callable[[], bool]]]:
    """By kind, the files that are broken and what reads them."""
    return {
        "study": {"study.yaml": bench.read_study, "hardware.yaml": bench.read_hardware},
        "dataset": {
            "dataset.yaml": bench.read_dataset,
            "cut.yaml": lambda: bench.read_dataset("cut.yaml"),
            "patients.yaml": lambda: bench.read_dataset("patients.yaml", "patients"),
        },
        "dataset.json": {"mirror/some/dataset.json": bench.read_description},
        "volume": {name: (lambda name=name: bench.read_volume(name)) for name in VOLUMES},
        "checkpoint": {"model.pt": bench.read_weights, "state/checkpoint.pt": bench.read_state},
        "contract": contracts(bench),
    }


VOLUMES = [
    f"one-{ending}/{place}Tr/case_0.{ending}"
    for ending in ("nii", "nii.gz", "nrrd", "mha")
    for place in ("images", "labels")
]


BY_USERS = ("published.csv", "timings.csv")
"""Tables without a number of lines that anything else says."""


def contracts(bench: Bench) -> dict[str, Callable[[], bool]]:
    """The files between stages, and what reads them."""
    study = "fake/results"
    return {
        f"{study}/cases.json": bench.read_cases,
        f"{study}/splits.json": bench.read_splits,
        f"{study}/fingerprint.json": bench.read_fingerprint,
        f"{study}/pre/plan.json": bench.read_preprocessing_plan,
        f"{study}/small/plan.json": lambda: bench.predict() and bench.read_results(),
        f"{study}/small/fold-0/manifest.json": bench.read_results,
        "fake/definition.json": bench.read_results,
        "postprocessing.json": bench.read_postprocessing,
        "preprocessed/case_4.json": bench.predict,
        f"{study}/scores.csv": bench.read_scores,
        f"{study}/small/fold-0/history.csv": bench.read_results,
        "published.csv": bench.read_results,
        "timings.csv": bench.read_results,
    }


def broken_file(bench: Bench, name: str) -> st.SearchStrategy[bytes]:
    """Contents that the file of that name may be given."""
    sound = bench.sound(name)
    if name.endswith(".yaml"):
        texts = {"study.yaml": STUDY, "hardware.yaml": HARDWARE, "cut.yaml": CUT, "patients.yaml": PATIENTS}
        text = texts.get(name, DATASET)
        return broken_yaml([text], [yaml.safe_load(text)])
    if name.endswith(".json"):
        return broken_json([json.loads(sound)])
    if name.endswith(".csv"):
        text = sound.decode()
        return st.one_of(broken_lines([text], [*CSV_PIECES, *text.splitlines()[:2]]), broken_bytes([sound], CSV_PIECES))
    if name.endswith((".nrrd", ".mha")):
        return st.one_of(broken_bytes([sound], ITK_PIECES, head=HEADER_BYTES), broken_bytes([sound]))
    return broken_volumes(sound, name) if ".nii" in name else broken_checkpoints(sound)


def broken_volumes(sound: bytes, name: str) -> st.SearchStrategy[bytes]:
    """NIfTI files with fields of the header set to something odd, bytes changed, or broken off."""
    packed = name.endswith(".gz")
    plain = gzip.decompress(sound) if packed else sound
    turned = nibabel.Nifti1Image.from_bytes(plain)
    other = nibabel.Nifti2Image.from_image(turned).to_bytes()
    changed = st.one_of(broken_headers(plain), broken_headers(plain), broken_bytes([plain, other], head=HEADER_BYTES))
    if not packed:
        return changed
    return st.one_of(changed.map(lambda content: gzip.compress(content, 1)), broken_bytes([sound]))


@st.composite
def broken_headers(draw: st.DrawFn, plain: bytes) -> bytes:
    """A header with one to three fields of other values, in front of the same voxels."""
    header = np.frombuffer(plain[:348], nibabel.Nifti1Header.template_dtype).copy().reshape(())
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["dim", "dim", "datatype", "bitpix", "pixdim", "vox_offset", *header.dtype.names]))
        field = header[name]
        if name == "dim" and draw(st.integers(0, 3)) == 0:  # more than any memory holds
            field[0], field[1:5] = draw(st.sampled_from([3, 4])), draw(st.sampled_from([30000, 3000, 1000]))
            continue
        if field.dtype.kind == "S":
            header[name] = draw(st.sampled_from([b"", b"n+1", b"ni1", b"n+2", b"\xff\xff\xff\xff"]))
            continue
        values = [0, -1, 1, 2, 3, 7, 8, 16, 64, 128, 256, 512, 768, 1024, 1792, 2304, 30000, 32767, -32768]
        if field.dtype.kind == "f":
            values = [0, -1, 1, 0.5, np.nan, np.inf, -np.inf, 1e-38, 1e-10, 1e10, 1e38, 352, 353, 348, 1e6, -352]
        value = np.array(draw(st.sampled_from(values))).astype(field.dtype)
        if field.ndim and draw(st.booleans()):
            field[draw(st.integers(0, field.shape[0] - 1))] = value
        else:
            header[name] = value
    return header.tobytes() + plain[348:]


def broken_checkpoints(sound: bytes) -> st.SearchStrategy[bytes]:
    """Files of PyTorch with other content, other forms of a file, and spoilt bytes."""
    content = torch.load(io.BytesIO(sound), weights_only=True)
    changed = st.builds(_saved, broken_documents([content]), st.sampled_from(["", "", "", "legacy", "pickle", 3, 4, 5]))
    return st.one_of(changed, changed, broken_bytes([sound], head=4000), broken_bytes([sound]))


def _saved(content: object, form: str | int) -> bytes:
    if form == "pickle":
        return pickle.dumps(content)
    buffer = io.BytesIO()
    options = {"pickle_protocol": form} if isinstance(form, int) else {}
    torch.save(content, buffer, _use_new_zipfile_serialization=form != "legacy", **options)
    return buffer.getvalue()


def examples(bench: Bench, kind: str) -> st.SearchStrategy[Example]:
    """Examples of a kind."""
    if kind in FILES:
        named = readers(bench)[kind]
        contents = {name: broken_file(bench, name) for name in named}
        return st.sampled_from(sorted(named)).flatmap(
            lambda name: contents[name].map(lambda content: file_example(name, content, named[name]))
        )
    texts = {"study.yaml": STUDY, "dataset.yaml": DATASET, "hardware.yaml": HARDWARE}
    cut_readers = {
        name: (lambda _, reader=reader: reader()) for name, reader in contracts(bench).items() if name not in BY_USERS
    }
    makers = {
        "scan": scans, "pickle": pickles, "tensor": tensors, "flip": lambda: flips(bench),
        "model": lambda: models(bench), "archive": archives, "yaml": lambda: yamls(texts),
        "cut": lambda: cuts(bench, cut_readers),
        "label map": label_maps,
    }  # fmt: skip
    return makers[kind]()


def file_example(name: str, content: bytes, reader: Callable[[], bool], is_sound: bool | None = None) -> Example:
    """A known file with other content."""
    return Example(what=name, files={name: content}, read=lambda _: reader(), is_sound=is_sound)


def note_fault(faults: dict[str, str], bench: Bench, example: Example, fault: str) -> None:
    """Keeps the first example of a fault beside the bench, and how it went wrong."""
    key = re.sub(r"\d+", "0", f"{example.what} {fault[:40]} {fault.rpartition(' < ')[2]}")
    if key in faults:
        return
    kept = bench.root / f"fault-{len(faults)}"
    for name, content in example.files.items():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        (kept / name).write_bytes(content) if isinstance(content, bytes) else (kept / name).symlink_to(content)
    faults[key] = f"{example.what}: {fault}\n    {kept}"


def fault_of(bench: Bench, example: Example, outcomes: Counter[str]) -> str | None:
    """What went wrong with an example."""
    try:
        taken = bench.accepts(example)
    except GuardError as fault:
        return str(fault)
    if example.is_sound is not None and taken != example.is_sound:
        return "sound and refused" if example.is_sound else "taken, and not sound"
    outcomes["taken" if taken else "refused"] += 1
    return None


@pytest.mark.parametrize("kind", FILES)
def test_sound_files_are_accepted(bench, kind):
    for name, reader in readers(bench)[kind].items():
        assert bench.accepts(file_example(name, bench.sound(name), reader)), name


def test_sound_scans_and_models_are_taken(bench):
    for example in sound_scans():
        assert bench.accepts(example), example.what
    assert bench.accepts(Example(what="model", files={}, read=lambda bench: bench.label_by_model(sign=True, fit=True)))


@pytest.mark.parametrize("kind", SHARES)
def test_broken_files_are_refused_or_taken(bench, kind):
    outcomes: Counter[str] = Counter()
    faults: dict[str, str] = {}

    @settings(
        max_examples=max(1, round(TOTAL * SHARES[kind])),
        derandomize="MEGAVOXEL_FUZZ" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(examples(bench, kind))
    def run(example: Example) -> None:
        fault = fault_of(bench, example, outcomes)
        if fault is not None:  # all faults of a run are collected, one for each place that they come from
            outcomes["faults"] += 1
            note_fault(faults, bench, example, fault)

    begin = time.monotonic()
    run()
    seconds = time.monotonic() - begin
    print(f"{kind}: {outcomes['refused']} refused, {outcomes['taken']} taken, {seconds:.0f} s")
    assert not faults, f"{outcomes['faults']} of them went wrong:\n" + "\n".join(faults.values())
    assert outcomes["refused"] > 0 or outcomes.total() < FEW
