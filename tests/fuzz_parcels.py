"""Weights, models, archives, tables and label maps that were made to do harm, or that decayed on a disk."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from hypothesis import strategies as st

from broken_inputs import NAMES, broken_documents
from fuzz_example import GIVEN, Example

if TYPE_CHECKING:
    from fuzz_bench import Bench

MIB = 2**20
MODEL = "model"
"""Folder of the exported model, below that of the inputs."""

# Pickles.

SNIPPETS = [
    b"]", b"}", b")", b"(", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"0", b"1", b"2",
    b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"R", b"b", b"Q", b"\x81", b"\x88", b"\x89", b"N", b"K\x02",
    b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
    b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"X\x01\x00\x00\x00a", b"X\x07\x00\x00\x00weights", b"B\x02\x00\x00\x00xy", b"\x8e\x00\x00\x00\x00\x00\x00\x00\xff",
    b"c__builtin__\nbytearray\n", b"cbuiltins\nset\n", b"ctorch\nSize\n", b"ctorch\nTensor\n",
    b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"c_codecs\nencode\n",
    b"ctorch\ndevice\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"cos\nsystem\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch.nn.parameter\nParameter\n", b"cposix\nsystem\n",
    b"X\x0c\x00\x00\x00touch escape",
]  # fmt: skip
"""Pieces of a pickle: values, names that PyTorch's reader knows and does not know, and what it does with them."""


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _bombs() -> dict[str, bytes]:
    """Pickles of some hundred bytes that stand for more than a machine holds."""
    doubled = b"]K\x00a" + b"".join(b"q%c(h%ch%cl" % (n, n, n) for n in range(60))
    three = b"\x87R"
    return {
        "bytearray of 2 GB": b"}X\x01\x00\x00\x00ac__builtin__\nbytearray\n" + _int(2**31 - 1) + b"\x85Rs",
        "list that doubles": b"}X\x09\x00\x00\x00precision" + doubled + b"s",
        "list that doubles as plan_hash": b"}X\x09\x00\x00\x00plan_hash" + doubled + b"s",
        "Tensor of 3.6 GB": b"}X\x01\x00\x00\x00actorch\nTensor\n" + _int(30000) * 2 + b"\x86Rs",
        "FloatStorage of 8 GB": b"}X\x01\x00\x00\x00actorch\nFloatStorage\n" + _int(2**31 - 1) + b"\x85Rs",
        "set of itself": b"}q\x00X\x01\x00\x00\x00ah\x00s",
        "deep": b"]" * 200000 + b"a" * 199999,
        "long number": b"}X\x01\x00\x00\x00a\x8b" + struct.pack("<i", 50000) + b"\x7f" * 50000 + b"s",
        "Counter": b"}X\x01\x00\x00\x00accollections\nCounter\n" + doubled + b"\x85Rs",
        "meta": b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_meta_tensor_no_storage\nNNN" + three + b"s",
    }


def packed_pickle(program: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file as `torch.save` writes it, with any pickle in it and a storage of 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        target.writestr("m/data.pkl", b"\x80\x02" + program + b".")
        target.writestr("m/byteorder", "little")
        target.writestr("m/data/0", bytes(64))
        target.writestr("m/version", "3\n")
    return buffer.getvalue()


@st.composite
def pickles(draw: st.DrawFn) -> Example:
    """Weights of an exported model, weights on their own or a state, with a pickle of a stranger."""
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    if draw(st.booleans()):
        what, program = draw(st.sampled_from(sorted(_bombs().items())))
    else:
        what, program = "random", b"".join(draw(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=25)))
    return _weights_example(draw, f"pickle: {what}", packed_pickle(program, compression=compression))


@st.composite
def tensors(draw: st.DrawFn) -> Example:
    """Weights whose tensors are others than they seem."""
    odd = {
        "expanded": torch.zeros(1).expand(10**12),
        "sparse": torch.sparse_coo_tensor(
            torch.zeros((1, 1), dtype=torch.long), [1.0], (2**40,), check_invariants=True
        ),
        "meta": torch.empty(10**10, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "half": torch.zeros(3, dtype=torch.float16),
        "empty": torch.zeros(0),
        "NaN": torch.full((3,), torch.nan),
    }
    what = draw(st.sampled_from(sorted(odd)))
    buffer = io.BytesIO()
    content: dict[str, Any] = {"weights": {"a": odd[what]}, "plan_hash": "x", "precision": "float32"}
    torch.save({"key": "some", **content} if draw(st.booleans()) else content, buffer)
    return _weights_example(draw, f"tensor: {what}", buffer.getvalue())


def _weights_example(draw: st.DrawFn, what: str, content: bytes) -> Example:
    way = draw(st.sampled_from(["model", "weights", "state"]))
    if way == "state":
        return Example(
            what=f"{what} in a state", files={"state/checkpoint.pt": content}, read=lambda bench: bench.read_state(),
            is_sound=False,
        )  # fmt: skip
    if way == "weights":
        return Example(
            what=f"{what} in weights", files={"model.pt": content}, read=lambda bench: bench.predict(), is_sound=False
        )
    return Example(
        what=f"{what} in a model", files={f"{MODEL}/fold-0.pt": content},
        read=lambda bench: bench.label_by_model(sign=True), is_sound=False,
    )  # fmt: skip


# Flipped bits.


def flips(bench: Bench) -> st.SearchStrategy[Example]:
    """One flipped bit in weights, a state, an exported model, or a preprocessed array."""
    arrays = sorted(path.name for path in bench.preprocessed.glob("*.b2nd"))
    arrays += sorted(path.name for path in bench.preprocessed.glob("*.npz"))
    readers = {
        "model.pt": _same_weights, "state/checkpoint.pt": _same_state, f"{MODEL}/fold-0.pt": _same_model,
        f"{MODEL}/plan.json": _same_model,
    } | {f"preprocessed/{name}": _read_array(name) for name in arrays}  # fmt: skip

    @st.composite
    def flipped(draw: st.DrawFn) -> Example:
        name = draw(st.sampled_from(sorted(readers)))
        content = bytearray(bench.sound(name))
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        kind = name.split(".", 1)[0] if name.startswith("preprocessed") else name
        return Example(what=f"flipped: {kind}", files={name: bytes(content)}, read=readers[name])

    return flipped()


def _same_weights(bench: Bench) -> bool:
    """Weights that are taken are those that were written."""
    return bench.same_weights() and bench.predict()


def _same_state(bench: Bench) -> bool:
    """A state that is taken up is the one that was written."""
    return bench.same_state()


def _same_model(bench: Bench) -> bool:
    """A model that labels is the one that was exported."""
    return bench.label_by_model(sign=False)


def _read_array(name: str) -> Any:
    return lambda bench: bench.same_array(name)


# Models.


@st.composite
def models(draw: st.DrawFn, bench: Bench) -> Example:
    """An exported model whose description or plan was changed, its checksums made to fit or not."""
    description = json.loads(bench.sound(f"{MODEL}/model.json"))
    plan = json.loads(bench.sound(f"{MODEL}/plan.json"))
    way = draw(st.sampled_from(["description", "plan", "network", "inference", "unsigned", "outside", "link"]))
    files: dict[str, bytes | Path] = {}
    is_sound: bool | None = False
    if way == "description":
        description, is_sound = draw(broken_documents([description])), None
    elif way == "plan":
        plan, is_sound = draw(broken_documents([plan])), None
    elif way == "network":
        plan["network"]["features"] = draw(st.sampled_from([[16384, 65536], [32, 8192], [2**31, 2], [4, 10**12]]))
    elif way == "inference":
        draw_sizes = lambda most: draw(st.lists(st.integers(1, most), min_size=3, max_size=3))  # noqa: E731
        plan["inference"] |= {"tiles": draw_sizes(6), "window": draw(st.sampled_from([None, "whole", draw_sizes(20)]))}
        plan["inference"] |= {"step": draw(st.sampled_from([0.5, 1.0])), "mirror": False}
        is_sound = None
    elif way == "unsigned":
        del description["sha256"][draw(st.sampled_from(["plan.json", "fold-0.pt"]))]
    elif way == "outside":
        description["folds"][0]["weights"] = draw(st.sampled_from(["../model.pt", "/etc/passwd", "a/../fold-0.pt", ""]))
    else:
        files[f"{MODEL}/fold-0.pt"], is_sound = Path("../model.pt"), None
    for name, content in (("model.json", description), ("plan.json", plan)):
        files[f"{MODEL}/{name}"] = _json(content)
    fit = way in ("plan", "network", "inference")
    sign = fit or way == "link"
    return Example(
        what=f"model: {way}",
        files=files,
        read=lambda bench: bench.label_by_model(sign=sign, fit=fit),
        is_sound=is_sound,
    )


def _json(content: Any) -> bytes:
    try:
        return json.dumps(content).encode()
    except (ValueError, RecursionError):
        return b"9" * 5000


# Archives.


@cache
def zeros(kind: str, count: int) -> bytes:
    """Compressed zeros: parts of 16 MiB that are one after the other, which gzip, bzip2 and xz all allow."""
    pack = {"gz": lambda data: gzip.compress(data, 9), "bz2": bz2.compress, "xz": lzma.compress, "tar": bytes}[kind]
    return pack(bytes(16 * MIB)) * count


@cache
def zip_of_zeros(compression: int) -> bytes:
    """A zip archive with a file of 256 MiB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        target.writestr("t/dataset.json", "{}")
        with target.open("t/imagesTr/a.nii", "w") as member:
            for _ in range(16):
                member.write(bytes(16 * MIB))
    return buffer.getvalue()


def tar_of_zeros(kind: str) -> bytes:
    """A compressed tar archive that claims and holds a file of 16 GiB."""
    header = io.BytesIO()
    with tarfile.open(fileobj=header, mode="w") as target:
        target.addfile(_member("t/dataset.json", size=2), io.BytesIO(b"{}"))
    info = _member("t/imagesTr/a.nii", size=16 * 1024 * MIB)
    begin = header.getvalue()[:1024] + info.tobuf(tarfile.GNU_FORMAT)
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind]
    return pack(begin) + zeros(kind, 1024)


def _member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, leads_to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, leads_to
    return info


def sparse_tar(size: int) -> bytes:
    """A tar archive with a sparse file of GNU's pax form: 512 bytes that stand for any number."""
    header = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    data = b"1\n0\n0\n".ljust(512, b"\0")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as target:
        target.addfile(_member("t/dataset.json", size=2), io.BytesIO(b"{}"))
        info = _member("t/imagesTr/a.nii", size=len(data))
        info.pax_headers = header | {"GNU.sparse.name": "t/imagesTr/a.nii"}
        target.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@cache
def many_links(count: int) -> bytes:
    """A tar archive with a file of 1 MiB and links to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as target:
        target.addfile(_member("t/dataset.json", size=2), io.BytesIO(b"{}"))
        target.addfile(_member("t/a.nii", size=MIB), io.BytesIO(bytes(MIB)))
        for number in range(count):
            target.addfile(_member(f"t/b{number}.nii", tarfile.LNKTYPE, leads_to="t/a.nii"))
    return buffer.getvalue()


ARCHIVE_BOMBS = {
    "16 GiB of zeros in a tar.gz": lambda: tar_of_zeros("gz"),
    "16 GiB of zeros in a tar.bz2": lambda: tar_of_zeros("bz2"),
    "16 GiB of zeros in a tar.xz": lambda: tar_of_zeros("xz"),
    "a sparse file of 1 TB": lambda: sparse_tar(10**12),
    "a sparse file of 10^18 bytes": lambda: sparse_tar(10**18),
    "4000 links to one file": lambda: many_links(4000),
}
"""What fills a disk; each is refused."""
LARGE_ARCHIVES = {
    "zeros in a zip": lambda: zip_of_zeros(zipfile.ZIP_DEFLATED),
    "zeros in a bzip2 zip": lambda: zip_of_zeros(zipfile.ZIP_BZIP2),
    "zeros in an LZMA zip": lambda: zip_of_zeros(zipfile.ZIP_LZMA),
}


@st.composite
def archives(draw: st.DrawFn) -> Example:
    """An archive that a dataset is fetched as."""
    way = draw(st.integers(0, 19))
    if way == 0:
        what, made = draw(st.sampled_from(sorted(ARCHIVE_BOMBS.items())))
        return _archive(what, made(), False)
    if way == 1:
        what, made = draw(st.sampled_from(sorted(LARGE_ARCHIVES.items())))
        return _archive(what, made(), None)
    content = _zip(draw) if way < 8 else _tar(draw)
    if draw(st.booleans()):
        spoilt = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            spoilt[draw(st.integers(0, len(spoilt) - 1))] = draw(st.integers(0, 255))
        content = bytes(spoilt)
    if draw(st.integers(0, 4)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return _archive("members", content, None)


def _archive(what: str, content: bytes, is_sound: bool | None) -> Example:
    return Example(
        what=f"archive: {what}",
        files={f"{GIVEN}/a.archive": content},
        read=lambda bench: bench.extract(),
        is_sound=is_sound,
    )


def _names(draw: st.DrawFn) -> list[str]:
    usual = st.sampled_from(["t/imagesTr/a.nii", "t/b", "dataset.json", "t/dataset.json", "u/dataset.json"])
    odd = st.sampled_from([name for name in NAMES if "\ud800" not in name and len(name) < 1000])
    return ["t/dataset.json", *draw(st.lists(st.one_of(usual, odd, odd.map(lambda name: f"t/{name}")), max_size=6))]


def _tar(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    mode = draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
    style = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    kinds = [tarfile.REGTYPE] * 3 + [
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ]
    with tarfile.open(fileobj=buffer, mode=mode, format=style) as target:
        for name in _names(draw):
            kind = draw(st.sampled_from(kinds)) if name != "t/dataset.json" else tarfile.REGTYPE
            size = draw(st.sampled_from([0, 2, 2000])) if kind == tarfile.REGTYPE else 0
            info = _member(name, kind, size, draw(st.sampled_from(["t/b", "../../escape", "/etc/passwd", name])))
            info.mode = draw(st.sampled_from([0o644, 0o4777, 0]))
            target.addfile(info, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def _zip(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(buffer, "w") as target:
        for name in dict.fromkeys(_names(draw)):
            info = zipfile.ZipInfo(name)
            info.compress_type = draw(st.sampled_from(methods))
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o120777, 0o020644])) << 16
            target.writestr(info, b"{}" if name.endswith(".json") else bytes(draw(st.sampled_from([0, 3000]))))
    return buffer.getvalue()


# YAML.


def yaml_bombs() -> dict[str, str]:
    """Text that a reader of YAML turns into far more than it is."""
    merged = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
    )
    listed = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    return {
        "merge keys": merged,
        "aliases": listed,
        "chain of merges": "a0: &a0 {k0: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}\n" for n in range(1, 3000)),
        "sexagesimal": "x: 1" + ":59" * 200_000,
        "sexagesimal float": "x: 1" + ":59" * 200_000 + ".5",
        "digits": "x: " + "9" * 600_000,
        "binary digits": "x: 0b" + "1" * 600_000,
        "hexadecimal digits": "x: 0x" + "f" * 600_000,
        "nested": "x: " + "[" * 100_000,
        "nested maps": "x: " + "{a: " * 50_000,
        "indented": "".join(" " * n + f"k{n}:\n" for n in range(1500)),
        "keys": "".join(f"k{n}: {n}\n" for n in range(30_000)),
        "same keys": "k: 1\n" * 30_000,
        "anchors": "".join(f"- &a{n} x\n" for n in range(30_000)),
        "quoted": 'x: "' + "\\x41" * 100_000 + '"',
        "comments": "#\n" * 300_000,
        "complex keys": "? " * 5000 + "x",
        "documents": "---\nx: 1\n" * 10_000,
        "sets": "x: !!set {" + ", ".join(f"k{n}" for n in range(10_000)) + "}",
        "pairs": "x: !!omap [" + ", ".join(f"k{n}: 1" for n in range(5_000)) + "]",
        "binary": "x: !!binary " + "QUJD" * 100_000,
        "date": "x: 2020-01-01T00:00:00." + "9" * 100_000,
    }


@st.composite
def yamls(draw: st.DrawFn, texts: dict[str, str]) -> Example:
    """A study, dataset or hardware file with a bomb in front of, within or in place of its text."""
    name = draw(st.sampled_from(["study.yaml", "dataset.yaml", "hardware.yaml"]))
    what, bomb = draw(st.sampled_from(sorted(yaml_bombs().items())))
    text = texts[name]
    content = draw(st.sampled_from([f"{bomb}\n{text}", f"{text}\n{bomb}\n", bomb]))
    readers = {
        "study.yaml": lambda bench: bench.read_study(), "dataset.yaml": lambda bench: bench.read_dataset(),
        "hardware.yaml": lambda bench: bench.read_hardware(),
    }  # fmt: skip
    is_harmless = what == "comments" and content != bomb
    return Example(
        what=f"yaml: {what}",
        files={name: content.encode()},
        read=readers[name],
        is_sound=None if is_harmless else False,
    )


# Tables and records that were cut.


def cuts(bench: Bench, readers: dict[str, Any]) -> st.SearchStrategy[Example]:
    """A file between stages that ends too early, at a line or anywhere else."""

    @st.composite
    def cut(draw: st.DrawFn) -> Example:
        name = draw(st.sampled_from(sorted(readers)))
        content = bench.sound(name)
        ends = [number + 1 for number, byte in enumerate(content) if byte == ord("\n")]
        end = draw(st.sampled_from(ends) if ends and draw(st.booleans()) else st.integers(0, len(content) - 1))
        is_whole = content[:end].rstrip() == content.rstrip()
        return Example(
            what=f"cut: {name}", files={name: content[:end]}, read=readers[name],
            is_sound=None if is_whole else False,
        )  # fmt: skip

    return cut()


# Label maps.


@cache
def huge_nifti(shape: tuple[int, ...], kind: str) -> bytes:
    """A packed label map of zeros."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(kind))
    header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 1
    header["srow_x"][0] = header["srow_y"][1] = header["srow_z"][2] = 1
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    begin = header.binaryblock + bytes(4)
    return gzip.compress(begin) + zeros("gz", size // (16 * MIB)) + gzip.compress(bytes(size % (16 * MIB)))


@st.composite
def label_maps(draw: st.DrawFn) -> Example:
    """A label map to be scored, or a scan to be labelled, that is some MB on disk and gigabytes in memory."""
    shape = draw(st.sampled_from([(1400, 1400, 1000), (32000, 32000, 1), (1, 1, 32000), (2000, 1000, 1000)]))
    kind = draw(st.sampled_from(["u1", "f8", "i4"]))
    content = huge_nifti(shape, kind)
    names = {f"{GIVEN}/predicted/a.nii.gz": content, f"{GIVEN}/reference/a.nii.gz": content}
    return Example(
        what=f"label map: {shape} {kind}", files=names, read=lambda bench: bench.evaluate_folders(),
        is_sound=None if shape[0] == 1 else False,
    )  # fmt: skip
