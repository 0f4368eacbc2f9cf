"""Whole stages on a pretended GPU: training that goes on, prediction, timing, calibration, and too little memory."""

from __future__ import annotations

import pytest
from rehearsal import told_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(guard_cache, tmp_path_factory) -> dict[str, dict]:
    """What each stage did."""
    found = told_by("stages.py", tmp_path_factory.mktemp("stages"), guard_cache)
    assert not {name: one["error"] for name, one in found.items() if "error" in one}
    return found


def test_a_run_that_is_told_to_end_within_an_epoch_goes_on_to_the_same_weights(told):
    assert "ended by SIGUSR1 after epoch 0 and 2 steps; the state is saved" in told["resuming"]["told"]
    assert told["resuming"]["equal"]
    assert told["resuming"]["again"]
    assert told["resuming"]["cpu"]


def test_the_manifest_names_the_gpu_and_what_pytorch_allocated_on_it(told):
    manifest = told["resuming"]["manifest"]
    assert manifest["device"] == "cuda"
    assert manifest["hardware"]["gpu"] == "pretended GPU (80 GiB)"
    assert manifest["peak_memory"]["how"] == "CUDA peak of PyTorch's allocator"
    # The forecast has room for cuDNN, which takes nothing here.
    assert manifest["peak_memory"]["gib"] < manifest["peak_memory"]["forecast_gib"]


def test_samples_that_other_processes_read_give_the_weights_of_the_cpu(told):
    assert told["workers"]["equal"]


def test_each_phase_of_a_curriculum_has_a_peak_of_its_own(told):
    first, second = told["curriculum"]["peaks"]
    assert second < first / 4
    assert told["curriculum"]["peak"]["gib"] * 1024 == pytest.approx(first)
    assert told["curriculum"]["equal"]


def test_label_maps_and_means_of_two_networks_are_those_of_the_cpu(told):
    assert told["prediction"]["apart"] == {"one": 0, "two": 0}
    assert told["prediction"]["labels"] == [0, 1, 3]
    assert told["prediction"]["timed"] == 1


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("train", "setting tiny: out of memory on pretended GPU"),
        ("predict", "setting tiny: out of memory on pretended GPU"),
        ("calibrate", "out of memory in the smallest step that is measured, a patch of 32 × 32 × 32: 0.0 of 80.0 GiB"),
    ],
)
def test_too_little_memory_is_one_line_with_what_would_help(told, stage, said):
    assert told["out_of_memory"][stage].startswith(f"megavoxel {stage}: error: {said}")


def test_calibration_takes_a_step_that_fits_and_no_memory_of_others_for_its_own(told):
    measured = dict(line.split(": ", 1) for line in told["calibrate"]["told"].splitlines())
    rates = {
        "teraflops",
        "gigabytes_per_second",
        "channels_at_once",
        "step_milliseconds",
        "reading_milliseconds",
        "augmentation_milliseconds",
    }
    assert measured.keys() == rates | {"overhead_gib", "workspace"}
    assert float(measured["overhead_gib"]) < 1  # others hold 79
    assert float(measured["workspace"]) < 1


def test_a_classifier_is_trained_and_asked_as_on_the_cpu(told):
    assert told["classification"]["apart"] < 1e-3
    numbers = [
        [float(word) for line in rows.splitlines()[1:] for word in line.split(",")[1:]]
        for rows in told["classification"]["rows"].values()
    ]
    assert len(numbers[0]) == 4
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
