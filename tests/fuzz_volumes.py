"""NIfTI, MetaImage and NRRD files, each spoilt in a way that people reported."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import strategies as st

from fuzz_example import GIVEN, Example, Truth
from fuzz_image import COLUMNS, COUNT, ORIGIN, ROWS, SIZE, SPACING, STACK, TRUTH, example

# NIfTI.


def nifti(voxels: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """The sound image, or another array on its grid."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (-ORIGIN[0], -ORIGIN[1], ORIGIN[2])
    image = kind(STACK.T if voxels is None else voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    return image


@st.composite
def spoilt_nifti(draw: st.DrawFn) -> Example:
    """A NIfTI file with one thing wrong or unusual."""
    ways = [_odd_voxels, _odd_pixdim, _units, _quaternion, _no_forms, _two_forms, _sheared]
    ways += [_axes, _packed, _kinds, _scaling]
    return draw(st.sampled_from(ways))(draw)


def _nifti(
    what: str, content: bytes, is_sound: bool | None, truth: Truth | None = TRUTH, *, packed: bool = True
) -> Example:
    name, data = ("scan.nii.gz", gzip.compress(content, 1)) if packed else ("scan.nii", content)
    return example(f"nifti: {what}", {name: data}, is_sound, truth)


def _header(image: nibabel.Nifti1Image, **fields: object) -> bytes:
    """The bytes of an image with fields of its header set to values that nibabel would not write."""
    content = image.to_bytes()
    header = np.frombuffer(content[:348], nibabel.Nifti1Header.template_dtype).copy().reshape(())
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + content[348:]


def _odd_voxels(draw: st.DrawFn) -> Example:
    voxels = STACK.T.astype(np.float32)
    way = draw(st.sampled_from(["NaN", "infinite", "constant"]))
    if way == "constant":
        voxels[:] = draw(st.sampled_from([0.0, -1000.0, 3e38]))
    else:
        places = draw(st.lists(st.integers(0, voxels.size - 1), min_size=1, max_size=5))
        voxels.ravel(order="K")[places] = np.nan if way == "NaN" else draw(st.sampled_from([np.inf, -np.inf]))
    return _nifti(f"{way} voxels", nifti(voxels).to_bytes(), False, packed=draw(st.booleans()))


def _odd_pixdim(draw: st.DrawFn) -> Example:
    """Without an affine of its own, a header's voxel sizes are all that there is."""
    image, sizes = nifti(), [1.0, *SPACING, 0, 0, 0, 0]
    sizes[draw(st.integers(1, 3))] = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    codes = draw(st.sampled_from([{"sform_code": 0, "qform_code": 1}, {"sform_code": 0, "qform_code": 0}]))
    return _nifti("voxel sizes", _header(image, pixdim=sizes, **codes), False)


def _units(draw: st.DrawFn) -> Example:
    """The same place in the patient in other units; one that nobody states counts as mm."""
    image, unit = nifti(), draw(st.sampled_from(["mm", "unknown", "meter", "micron"]))
    factor = {"meter": 1e-3, "micron": 1e3}.get(unit, 1.0)
    affine = np.diag([factor] * 3 + [1.0]) @ image.affine
    image = nibabel.Nifti1Image(STACK.T, affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units(unit)
    return _nifti(f"units: {unit}", image.to_bytes(), True if factor == 1 else None)


def _quaternion(draw: st.DrawFn) -> Example:
    """b of 1 turns by 180 degrees about x; one that is a little longer than 1 is so by rounding.

    One that is a little shorter is no half turn: 1 - 5e-7 leaves 0.002 radians, which ITK reads as well.
    """
    affine = np.diag([SPACING[0], -SPACING[1], -SPACING[2], 1.0])
    image = nibabel.Nifti1Image(STACK.T[::-1, :, ::-1], affine)
    affine[:3, 3] = (-ORIGIN[0] - SIZE[0], -ORIGIN[1], ORIGIN[2] + SIZE[2])
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    length = draw(st.sampled_from([1.0, 1 + 1e-7, 1 + 5e-7, 1.5, 20.0, np.nan, np.inf]))
    content = _header(image, quatern_b=length)
    return _nifti("quaternion", content, abs(length - 1) < 1e-6)


def _no_forms(draw: st.DrawFn) -> Example:
    image = nifti()
    bad = draw(st.sampled_from([[0, 0, 0, 0], [np.nan, 0, 0, 0], [np.inf, 1, 0, 0]]))
    fields = draw(st.sampled_from([{"sform_code": 0, "qform_code": 0}, {"qform_code": 0, "srow_x": bad}]))
    return _nifti("no place in the patient", _header(image, **fields), False)


def _two_forms(draw: st.DrawFn) -> Example:
    """A qform that is the sform's mirror image, or turned against it, which another code allows."""
    image = nifti()
    code, axis = draw(st.sampled_from([1, 2, 4])), draw(st.integers(0, 2))
    way = draw(st.sampled_from(["equal", "mirrored", "turned"]))
    signs = np.ones(4)
    signs[[] if way == "equal" else [axis] if way == "mirrored" else [axis, (axis + 1) % 3]] = -1
    image.set_sform(image.affine, code)
    image.set_qform(image.affine @ np.diag(signs), 1)
    return _nifti(f"qform {way}", image.to_bytes(), way == "equal" or (way == "turned" and code != 1))


def _sheared(draw: st.DrawFn) -> Example:
    image, (row, column) = nifti(), draw(st.permutations(range(3)))[:2]
    cosine = draw(st.sampled_from([1e-7, 1e-5, 0.003, 0.05, 0.5]))
    affine = image.affine.copy()
    affine[row, column] += cosine * SPACING[column]
    image.set_qform(None, 0)
    image.set_sform(affine, 1)
    return _nifti("sheared", image.to_bytes(), cosine < 1e-4, None)


def _axes(draw: st.DrawFn) -> Example:
    shape, is_sound = draw(
        st.sampled_from([
            ((COLUMNS, ROWS, COUNT, 1), True), ((COLUMNS, ROWS, COUNT, 1, 1), None),
            ((COLUMNS, ROWS, COUNT, 1, 1, 1, 1), None), ((COLUMNS, ROWS, 2, 1, COUNT // 2), False),
            ((COLUMNS, ROWS, 2, COUNT // 2), False), ((COLUMNS * ROWS, COUNT), False),
        ])
    )  # fmt: skip
    return _nifti(f"{len(shape)} axes", nifti(STACK.T.reshape(shape, order="F")).to_bytes(), is_sound)


def _packed(draw: st.DrawFn) -> Example:
    """Files that are not packed as their name says, that are cut or longer, or have a byte that was flipped."""
    content = nifti().to_bytes()
    way = draw(st.sampled_from(["not packed", "packed twice", "cut", "longer", "flipped", "in two parts"]))
    packed = gzip.compress(content)
    if way == "flipped":
        spoilt = bytearray(packed)
        spoilt[draw(st.integers(10, len(packed) - 5))] ^= 1 << draw(st.integers(0, 7))
        return example("nifti: flipped in gzip", {"scan.nii.gz": bytes(spoilt)}, False)
    made = {
        "not packed": (content, None), "packed twice": (gzip.compress(packed), None),
        "longer": (packed + b"x" * 9, None),
        "in two parts": (gzip.compress(content[:400]) + gzip.compress(content[400:]), True),
        "cut": (packed[: draw(st.integers(1, len(packed) - 1))], False),
    }  # fmt: skip
    return example(f"nifti: {way}", {"scan.nii.gz": made[way][0]}, made[way][1])


def _kinds(draw: st.DrawFn) -> Example:
    kind = draw(st.sampled_from([np.complex64, np.int32, np.float64, np.uint8, "rgb"]))
    if kind == "rgb":
        voxels = np.zeros((COLUMNS, ROWS, COUNT), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        return _nifti("colours", nifti(voxels).to_bytes(), False)
    voxels = STACK.T.clip(0, 255) if kind is np.uint8 else STACK.T
    truth = Truth(voxels=voxels.T[:, ::-1, ::-1].astype(float), first=TRUTH.first, last=TRUTH.last)
    made = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    image = nifti(voxels.astype(kind), made)
    return _nifti(f"{np.dtype(kind)}", image.to_bytes(), kind is not np.complex64, truth)


def _scaling(draw: st.DrawFn) -> Example:
    slope, offset = draw(st.sampled_from([(2.0, -100.0), (0.0, 5.0), (np.nan, np.nan), (np.inf, 0.0), (1.0, np.nan)]))
    scaled = STACK * slope + offset if slope == 2 else STACK
    truth = Truth(voxels=scaled[:, ::-1, ::-1].astype(float), first=TRUTH.first, last=TRUTH.last)
    content = _header(nifti(), scl_slope=slope, scl_inter=offset)
    return _nifti("scaling", content, True if slope == 2 else None, truth if slope in (2.0, 0.0) else None)


# MetaImage and NRRD.


def metaimage(data: str, **fields: str) -> str:
    """The header of a MetaImage; fields by name, without value: left out."""
    header = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": " ".join(map(str, ORIGIN)),
        "ElementSpacing": " ".join(map(str, SPACING)), "DimSize": f"{COLUMNS} {ROWS} {COUNT}",
        "ElementType": "MET_SHORT",
    } | fields | {"ElementDataFile": data}  # fmt: skip
    return "".join(f"{name} = {value}\n" for name, value in header.items() if value)


def nrrd(**fields: str) -> str:
    """The header of a NRRD file; fields by name with underscores for blanks, without value: left out."""
    header = {
        "type": "int16", "dimension": "3", "space": "left-posterior-superior", "sizes": f"{COLUMNS} {ROWS} {COUNT}",
        "space directions": f"({SPACING[0]},0,0) (0,{SPACING[1]},0) (0,0,{SPACING[2]})",
        "kinds": "domain domain domain", "endian": "little", "encoding": "raw",
        "space origin": f"({','.join(map(str, ORIGIN))})",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    return "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in header.items() if value)


@st.composite
def spoilt_itk(draw: st.DrawFn) -> Example:
    """A MetaImage or NRRD file with one thing wrong or unusual."""
    return draw(st.sampled_from([_outside, _sizes, _grid, _itk_packed, _beside]))(draw)


OUTSIDE = [
    "INPUTS/secret/secret.raw", "../secret/secret.raw", "sub/../../secret/secret.raw", "LIST\nINPUTS/secret/secret.raw",
    "LIST\n../secret/secret.raw", "INPUTS/secret/secret.ra%c 119 119 1", "../secret/secret.ra%c 119 119 1", "link.raw",
    "LIST\nlink.raw",
]  # fmt: skip
"""What a header may name that does not lie in its folder; INPUTS stands for the bench's folder."""


def _outside(draw: st.DrawFn) -> Example:
    named = draw(st.sampled_from(OUTSIDE))
    is_nrrd = draw(st.booleans())
    ending, content = (".nhdr", nrrd(data_file=named)) if is_nrrd else (".mhd", metaimage(named))
    files = {
        "secret/secret.raw": STACK.tobytes(),
        f"{GIVEN}/sub/none": b"",
        f"{GIVEN}/link.raw": Path("../secret/secret.raw"),
        f"{GIVEN}/scan{ending}": content.encode(),
    }
    return Example(what=f"itk: outside, {named}", files=files, read=lambda bench: bench.label(TRUTH), is_sound=False)


def _sizes(draw: st.DrawFn) -> Example:
    sizes = draw(st.sampled_from(["10 9 9", "1000 1000 1000", "30000 30000 30000", "0 9 8", "-1 9 8", "10 9", "x"]))
    if draw(st.booleans()):
        content = nrrd(sizes=sizes, encoding=draw(st.sampled_from(["raw", "gzip"]))).encode() + b"\n"
        packed = gzip.compress(STACK.tobytes()) if b"gzip" in content else STACK.tobytes()
        return example("nrrd: sizes", {"scan.nrrd": content + packed}, False)
    return example(
        "metaimage: sizes", {"scan.mha": metaimage("LOCAL", DimSize=sizes).encode() + STACK.tobytes()}, False
    )


def _grid(draw: st.DrawFn) -> Example:
    if draw(st.booleans()):
        fields = draw(
            st.sampled_from([
                {"ElementSpacing": ""}, {"ElementSpacing": "0 1 1"}, {"ElementSpacing": "nan 1 1"},
                {"ElementSpacing": "1 1 inf"}, {"TransformMatrix": "0 0 0 0 0 0 0 0 0"},
                {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, {"ElementSpacing": "-1 1 1"},
                {"TransformMatrix": "1 0 0 0.1 0.995 0 0 0 1"},
            ])
        )  # fmt: skip
        return example("metaimage: grid", {"scan.mha": metaimage("LOCAL", **fields).encode() + STACK.tobytes()}, False)
    fields = draw(
        st.sampled_from([
            {"space": ""}, {"space_directions": ""}, {"space_directions": "(0,0,0) (0,1,0) (0,0,1)"},
            {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"},
            {"space_directions": "none none none"}, {"space_directions": "(1,0.1,0) (0,1,0) (0,0,1)"},
            {"space": "", "space_directions": "", "spacings": "2 1.5 0"},
        ])
    )  # fmt: skip
    return example("nrrd: grid", {"scan.nrrd": nrrd(**fields).encode() + b"\n" + STACK.tobytes()}, False)


def _itk_packed(draw: st.DrawFn) -> Example:
    """Packed voxels, in NRRD with either order of bytes."""
    name = draw(st.sampled_from(["scan.nrrd", "scan.mha"]))
    order = draw(st.sampled_from(["little", "big"]))
    content = STACK.astype({"little": "<i2", "big": ">i2"}[order]).tobytes()
    if name == "scan.nrrd":
        packed, header = bytearray(gzip.compress(content)), nrrd(encoding="gzip", endian=order) + "\n"
        first, behind = 10, 4
    else:
        packed, first, behind = bytearray(zlib.compress(content)), 2, 0
        fields = {"CompressedData": "True", "CompressedDataSize": str(len(packed))}
        header = metaimage("LOCAL", BinaryDataByteOrderMSB=str(order == "big"), **fields)
    way = draw(st.sampled_from(["sound", "cut", "flipped"]))
    if way == "flipped":
        packed[draw(st.integers(first, len(packed) - behind - 1))] ^= 1 << draw(st.integers(0, 7))
    kept = packed[: draw(st.integers(0, len(packed) - 20))] if way == "cut" else packed
    # Bits between the end of deflate and the checksum mean nothing; what is taken has to be the sound image.
    is_sound = {"sound": True, "cut": False, "flipped": None}[way]
    return example(f"{name}: {way} and packed", {name: header.encode() + kept}, is_sound)


def _beside(draw: st.DrawFn) -> Example:
    """A header whose voxels lie beside it, sound, absent or too short."""
    content = STACK.tobytes()
    data = draw(st.sampled_from([content, content[:-1], b"", None]))
    name, header = draw(st.sampled_from([("scan.mhd", metaimage("v.raw")), ("scan.nhdr", nrrd(data_file="v.raw"))]))
    files = {name: header.encode()} | ({} if data is None else {"v.raw": data})
    return example(f"itk: {name} beside its voxels", files, data == content)
