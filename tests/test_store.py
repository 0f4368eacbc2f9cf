"""Preprocessed cases on disk: there and back, patches, chunks, damage."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from helpers import properties
from megavoxel.errors import UserError
from megavoxel.preprocessing.store import BLOCK_BYTES, CHUNK_BYTES, chunking, open_case, save_case

SHAPE = (20, 30, 25)


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    image = random.normal(size=(2, *SHAPE)).astype(np.float32)
    labels = random.integers(0, 3, size=SHAPE).astype(np.uint8)
    return image, labels, {label: np.argwhere(labels == label) for label in (1, 2)}


def save(folder, arrays, *, labels=True, case="a"):
    image, classes, foreground = arrays
    save_case(folder, properties(case, SHAPE), image, classes if labels else None, foreground, (8, 12, 10))


def test_a_case_comes_back_as_it_was(tmp_path, arrays):
    save(tmp_path, arrays)
    stored = open_case(tmp_path, "a")
    np.testing.assert_array_equal(stored.image[:], arrays[0])
    np.testing.assert_array_equal(stored.labels[:], arrays[1])
    assert (stored.image.dtype, stored.labels.dtype) == (np.float32, np.uint8)
    assert stored.properties == properties("a", SHAPE)
    assert list(stored.foreground) == [1, 2]
    np.testing.assert_array_equal(stored.foreground[2], arrays[2][2])


def test_a_patch_is_that_part_of_the_array(tmp_path, arrays):
    save(tmp_path, arrays)
    part = np.s_[:, 3:11, 7:19, 14:24]
    np.testing.assert_array_equal(open_case(tmp_path, "a").image[part], arrays[0][part])


def test_the_same_case_gives_the_same_bytes(tmp_path, arrays):
    save(tmp_path / "one", arrays)
    save(tmp_path / "two", arrays)
    for name in ("a.image.b2nd", "a.labels.b2nd", "a.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_case_without_labels_has_none_even_where_it_had(tmp_path, arrays):
    save(tmp_path, arrays)
    save(tmp_path, arrays, labels=False)
    assert open_case(tmp_path, "a").labels is None


def test_a_case_that_breaks_off_does_not_look_whole(tmp_path, arrays, monkeypatch):
    save(tmp_path, arrays)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megavoxel.preprocessing.store.np.savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, arrays)
    assert not (tmp_path / "a.json").exists()
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("patch", [(8, 8, 8), (64, 288, 288), (128, 128, 128), (1, 512, 512)])
@pytest.mark.parametrize("shape", [(1, 400, 512, 512), (3, 10, 20, 30), (200, 300, 180)])
def test_chunks_and_blocks_keep_their_limits(shape, patch):
    chunks, blocks = chunking(shape, 4, patch)
    assert np.prod(chunks) * 4 <= CHUNK_BYTES
    assert np.prod(blocks) * 4 <= BLOCK_BYTES
    assert chunks[:-3] == blocks[:-3] == (1,) * (len(shape) - 3)
    for size, chunk, block, extent in zip(shape[-3:], chunks[-3:], blocks[-3:], patch, strict=True):
        assert 1 <= block <= chunk <= min(size, max(1, int(1.5 * extent)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.json", "does not exist"),
        ("a.image.b2nd", "no such preprocessed array"),
        ("a.foreground.npz", "missing or damaged"),
    ],
)
def test_a_missing_part_is_named(tmp_path, arrays, name, message):
    save(tmp_path, arrays)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=message) as error:
        open_case(tmp_path, "a")
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["a.image.b2nd", "a.foreground.npz", "a.json"])
def test_a_damaged_part_is_named(tmp_path, arrays, name):
    save(tmp_path, arrays)
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=name):
        open_case(tmp_path, "a")


@pytest.mark.parametrize("suffix", ["image.b2nd", "labels.b2nd", "foreground.npz", "json"])
def test_a_flipped_byte_anywhere_in_a_case_names_the_case_and_the_file(tmp_path, arrays, suffix):
    save(tmp_path, arrays)
    path = tmp_path / f"a.{suffix}"
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 40).astype(int):
        spoilt = bytearray(content)
        spoilt[place] ^= 0x10
        path.write_bytes(spoilt)
        with pytest.raises(UserError) as caught:
            open_case(tmp_path, "a")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    open_case(tmp_path, "a")


def test_the_checksums_are_those_of_coreutils(tmp_path, arrays):
    save(tmp_path, arrays)
    done = subprocess.run(["sha256sum", "--check", "--quiet", "a.sha256"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert len((tmp_path / "a.sha256").read_text().splitlines()) == 4


def test_a_file_that_did_not_change_is_looked_at_once_in_a_process(tmp_path, arrays, monkeypatch):
    save(tmp_path, arrays)
    open_case(tmp_path, "a")
    monkeypatch.setattr("megavoxel.preprocessing.checksums.file_sha256", lambda _: pytest.fail("looked at again"))
    open_case(tmp_path, "a")


@pytest.mark.parametrize("name", ["a.labels.b2nd", "a.sha256"])
def test_a_part_that_is_gone_is_missed(tmp_path, arrays, name):
    save(tmp_path, arrays)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        open_case(tmp_path, "a")
