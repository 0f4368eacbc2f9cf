"""Files of PyTorch: damage is seen, strangers' files cost no more than they are long, and equal content is equal."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import tiny_plan
from megavoxel.errors import UserError
from megavoxel.network.pickles import storages_in
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.tensor_files import load_tensors, save_tensors
from megavoxel.network.weights import fill_network, load_weights, save_weights
from megavoxel.training.states.checkpoint import load_state, save_state

CONTENT = {"weights": {"a": torch.arange(1000, dtype=torch.float32)}, "plan_hash": "x", "precision": "float32"}


def sound() -> bytes:
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    return buffer.getvalue()


def archive(path: Path, pickled: bytes, **parts: bytes) -> Path:
    """An archive of PyTorch with any pickle."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("m/data.pkl", pickled)
        target.writestr("m/byteorder", "little")
        target.writestr("m/version", "3\n")
        for key, part in parts.items():
            target.writestr(f"m/data/{key.removeprefix('_')}", part)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError, match=r"no weights of megavoxel, or damaged") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        CONTENT,
        {"a": torch.zeros(3, dtype=torch.bfloat16), "b": [1, 2.5, None, True, "text", 2**40], "c": (1, (2, 3))},
        OrderedDict(SegmentationNetwork(tiny_plan().network).state_dict()),
        SegmentationNetwork(tiny_plan().network).state_dict(),
        {"a": torch.nn.Parameter(torch.ones(2, 3).T), "empty": torch.zeros(0, 4), "one": torch.tensor(7)},
        {"history": [{"epoch": number, "loss": 0.5} for number in range(2000)]},
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_pytorch_writes_for_tensors_and_plain_values_is_read(tmp_path, content, old):
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = load_tensors(tmp_path / "a.pt")
    assert found.keys() == content.keys()
    for key, value in content.items():
        assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else str(found[key]) == str(value)


def test_states_of_optimisers_are_read(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path, {"key": "k", "optimizer": optimizer.state_dict()})
    state = load_state(tmp_path, key="k")
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_every_flipped_byte_of_the_numbers_is_seen(tmp_path):
    content = sound()
    start = content.index(CONTENT["weights"]["a"].numpy().tobytes())
    for place in (start, start + 1999, start + 3999):
        spoilt = bytearray(content)
        spoilt[place] ^= 0x40
        (tmp_path / "model.pt").write_bytes(spoilt)
        assert "the checksum differs" in refused(tmp_path / "model.pt")


def test_a_flipped_byte_anywhere_is_seen_or_changes_nothing(tmp_path):
    content, path = sound(), tmp_path / "model.pt"
    for place in range(0, len(content), 17):
        spoilt = bytearray(content)
        spoilt[place] ^= 0xFF
        path.write_bytes(spoilt)
        try:
            found = load_weights(path)
        except UserError:
            continue
        assert torch.equal(found["weights"]["a"], CONTENT["weights"]["a"])
        assert (found["plan_hash"], found["precision"]) == ("x", "float32")


def test_a_flipped_bit_in_a_state_falls_back_to_the_state_before_it(tmp_path, capsys):
    for epoch in (1, 2):
        save_state(tmp_path, {"key": "k", "epoch": epoch, "network": CONTENT["weights"]})
    content = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    content[content.index(CONTENT["weights"]["a"].numpy().tobytes()) + 2000] ^= 1
    (tmp_path / "checkpoint.pt").write_bytes(content)
    assert load_state(tmp_path, key="k")["epoch"] == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "checkpoint.pt: damaged" in line
    assert "the checksum differs" in line
    assert line.endswith("going on from the state before it")


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def call(name: str, arguments: bytes) -> bytes:
    module, _, kind = name.rpartition(".")
    return f"c{module}\n{kind}\n".encode() + arguments + b"R"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(length: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(length) + b"tQ"


def tensor(length: int, size: int, stride: int = 1, offset: int = 0) -> bytes:
    shape = number(size) + b"\x85" + number(stride) + b"\x85"
    return call("torch._utils._rebuild_tensor_v2", b"(" + storage(length) + number(offset) + shape + b"\x89Nt")


def one_value(value: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + value + b"s."


def doubling(begin: bytes, pair: bytes) -> bytes:
    """[x, x] of [x, x] and so on, 60 times."""
    steps = b"".join(pair.replace(b"?", bytes([level])).replace(b"!", bytes([level + 1])) for level in range(60))
    return one_value(begin + b"q\x00" + steps)


ORDERED = b"ccollections\nOrderedDict\n"
HUGE = {
    "a bytearray of 6 GB": one_value(call("builtins.bytearray", number(6 * 10**9) + b"\x85")),
    "a tensor made by its shape": one_value(call("torch.Tensor", number(30000) + number(30000) + b"\x86")),
    "lists that double": doubling(b"]", b"]h?ah?aq!"),
    "tuples that double": doubling(b")", b"h?h?\x86q!"),
    "a list in itself": one_value(b"]q\x00h\x00a"),
    "copies of a dictionary": b"\x80\x02}q\x00"
    + text("a")
    + b"]"
    + b"ccollections\nOrderedDict\nh\x00\x85Ra" * 3
    + b"s.",
    "states of a dictionary": b"\x80\x02}q\x00"
    + text("a")
    + b"]"
    + b"ccollections\nOrderedDict\n)Rh\x00ba" * 3
    + b"s.",
    "numbers that are not there": one_value(tensor(10**9, 10**9)),
    "a view beyond its numbers": one_value(tensor(4, 10**9)),
    "a view that repeats a number": one_value(tensor(4, 10**9, stride=0)),
    "a view behind its numbers": one_value(tensor(4, 2, offset=3)),
    "a negative step": one_value(tensor(4, 2, stride=-1, offset=1)),
    "the same numbers again and again": one_value(b"(" + tensor(4, 4) * 5 + b"t"),
    "a set": one_value(call("builtins.set", b"]\x85")),
    "another protocol": b"\x80\x04}.",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_that_asks_for_much_is_refused_before_anything_is_built(tmp_path, name):
    refused(archive(tmp_path / "model.pt", HUGE[name], _0=bytes(16)))


def test_more_values_than_any_network_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("megavoxel.network.pickles.MOST_STEPS", 1000)
    path = archive(tmp_path / "model.pt", one_value(b"(" + b"N" * 1000 + b"t"))
    assert "it holds more values than any network has" in refused(path)


def test_the_parts_of_those_files_are_what_makes_them_hostile(tmp_path):
    content = load_tensors(archive(tmp_path / "a.pt", one_value(tensor(4, 4)), _0=struct.pack("<4f", 1, 2, 3, 4)))
    assert content["a"].tolist() == [1, 2, 3, 4]
    assert storages_in(one_value(tensor(4, 4))) == {"0": 16}


def doubled_name(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as target:
        target.writestr(target.namelist()[0], b"\x80\x02}.")


def comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as target:
        target.comment = b"PK\x05\x06" + bytes(18)


def packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(10**7))


def behind_something(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100) + path.read_bytes())


def other_part(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("archive/DATA.pkl", b"\x80\x02}.")


@pytest.mark.parametrize("spoil", [doubled_name, comment, packed, behind_something, other_part])
def test_an_archive_that_programs_may_read_differently_is_refused(tmp_path, spoil: Callable[[Path], None]):
    path = tmp_path / "model.pt"
    path.write_bytes(sound())
    spoil(path)
    refused(path)


def test_a_file_that_only_begins_like_one_of_pytorch_is_refused(tmp_path):
    for content in (b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", pickle.dumps({}), sound()[:-20]):
        (tmp_path / "model.pt").write_bytes(content)
        refused(tmp_path / "model.pt")


def test_equal_weights_are_equal_files_whatever_the_process_and_the_name(tmp_path):
    program = (
        "import sys; from megavoxel.network.weights import save_weights; from pathlib import Path; "
        "from megavoxel.network.segmentation import SegmentationNetwork; from helpers import tiny_plan; "
        "save_weights(Path(sys.argv[1]), SegmentationNetwork(tiny_plan().network, seed=3), plan_hash='h')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.pt")], check=True, env=environment)
    save_weights(tmp_path / "other.pt", SegmentationNetwork(tiny_plan().network, seed=3), plan_hash="h")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


def test_a_network_takes_its_memory_from_the_weights_if_they_fit(tmp_path):
    network = SegmentationNetwork(tiny_plan().network, seed=1)
    save_tensors(tmp_path / "a.pt", network.state_dict())
    weights = load_tensors(tmp_path / "a.pt")
    with torch.device("meta"):
        empty, other = SegmentationNetwork(tiny_plan().network), SegmentationNetwork(tiny_plan().network)
    fill_network(empty, weights, tmp_path / "a.pt")
    image = torch.rand(1, 1, 8, 24, 24)
    assert torch.equal(empty.eval()(image)[0], network.eval()(image)[0])
    name = next(iter(weights))
    for wrong in (weights[name].double(), weights[name][..., :1]):
        with pytest.raises(UserError, match=r"a\.pt: its weights do not fit the network of the plan"):
            fill_network(other, weights | {name: wrong}, tmp_path / "a.pt")
