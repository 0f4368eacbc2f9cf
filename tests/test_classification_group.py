"""Several workers train one classifier: each on its own files, together as one would, over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import classification_worker
from megavoxel.distributed.group import Group
from small_images import write_folders, write_image
from stage_server import run_group

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folders(folder, classification_worker.PER_CLASS)
    write_image(folder / classification_worker.UNUSED, "bright", 99)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def workers(request, images, tmp_path_factory) -> list[dict]:
    """What each worker of a group of 2, then of 4, found."""
    output = tmp_path_factory.mktemp("workers")
    run_group(classification_worker.__file__, images, output, processes=request.param)
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def test_a_worker_opens_the_files_of_its_own_share_and_no_other(workers, images):
    for rank, found in enumerate(workers):
        own = {*found["private"]["training"][rank], *found["private"]["validation"][rank]}
        assert found["opened"] == sorted(str(images / name) for name in own)
    together = [name for found in workers for name in found["opened"]]
    assert len(together) == len(set(together)) == 2 * classification_worker.PER_CLASS


def test_opening_any_file_of_the_dataset_but_its_own_is_an_error(workers):
    for found in workers:
        attempts = dict(found["attempts"])
        assert attempts.pop("own") == "opened"
        assert "starts no other program" in attempts.pop("program")
        for way, message in attempts.items():
            assert "is not in this worker's private share" in message, way


def test_the_bar_holds_in_the_processes_that_load_images(workers):
    for found in workers:
        own, other = found["loaders"]
        assert own == "opened"
        assert "is not in this worker's private share" in other
        assert "\n" not in other


def test_all_workers_end_with_the_same_weights(workers):
    for found in workers[1:]:
        for way in ("private", "shared"):
            torch.testing.assert_close(found[way]["weights"], workers[0][way]["weights"], rtol=0, atol=0)


def test_unequal_shares_take_the_step_of_the_pooled_batch(workers, images):
    alone = classification_worker.unequal_step(images, Group(), classification_worker.COUNTS[: len(workers)])
    for found in workers:
        torch.testing.assert_close(found["unequal"], alone, **TOLERANCE)


def test_a_plain_mean_of_the_workers_gradients_would_be_another_step(images):
    """The comparison above can fail: workers that count alike, however many images they have."""
    alone = classification_worker.unequal_step(images, Group(), (3, 1))["gradients"]
    few = [classification_worker.unequal_step(images, Group(), (count,))["gradients"] for count in (3, 1)]
    mean = [(first + second) / 2 for first, second in zip(*few, strict=True)]
    assert not all(torch.allclose(own, other, **TOLERANCE) for own, other in zip(alone, mean, strict=True))


def test_running_statistics_are_averaged_by_images(workers):
    counts = classification_worker.COUNTS[: len(workers)]
    mean = sum(rank * count for rank, count in enumerate(counts)) / sum(counts)
    for found in workers:
        assert found["statistics"].item() == pytest.approx(mean)


def test_shared_data_is_serial_training_with_the_batch_of_all(workers, images, tmp_path):
    keys = classification_worker.SGD | {"batch": 2 * len(workers)}
    alone = classification_worker.trained(images, tmp_path, Group(), **keys)
    shared = workers[0]["shared"]
    torch.testing.assert_close(shared["weights"], alone["weights"], rtol=1e-3, atol=1e-5)
    for key in ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy"):
        assert [row[key] for row in shared["history"]] == pytest.approx(
            [row[key] for row in alone["history"]], rel=1e-3
        )
