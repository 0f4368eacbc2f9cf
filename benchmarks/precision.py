"""What half precision costs: the small setting of the study hippocampus-budget on fold 0, in bfloat16 and in float32.

Its training gets further than that of nnU-Net's default in 500 steps. The first may not be worse by more than 0.005.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from benchmarks.accuracy import REPOSITORY, STUDY, score, train
from benchmarks.measure import Row, larger_is_better

ACCEPTED_LOSS = 0.005
"""DSC that half precision may cost."""
PRECISIONS = ("bfloat16", "float32")


def run() -> list[Row]:
    """One row; its ratio is at least 1 where half precision is good enough."""
    study = yaml.safe_load((REPOSITORY / f"config/studies/{STUDY}.yaml").read_text())
    for name in PRECISIONS:
        study["settings"][name] = {"inherits": "small", "training": {"precision": name}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        train(root, path, PRECISIONS)
        half, exact = (score(root, name)[0] for name in PRECISIONS)
    print(f"DSC in bfloat16 {half:.4f}, in float32 {exact:.4f}", flush=True)
    title = f"DSC of the small setting in bfloat16, with {ACCEPTED_LOSS} allowed for"
    return [larger_is_better(title, "ours in float32", half + ACCEPTED_LOSS, exact, "DSC")]
