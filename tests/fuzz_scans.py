"""Scans that are handed in to be labelled, each spoilt in a way that people reported, and what they really hold.

The image is 10 x 9 x 8 voxels of 2 x 1.5 x 3 mm. Where a spoilt one is taken, its voxels and its place in the patient
have to be those of the sound one.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import strategies as st

from dicom_files import Tags, dicom_file, frames_tags, numbers, slice_tags
from fuzz_example import GIVEN, Example, Truth

COUNT, ROWS, COLUMNS = 8, 9, 10
SPACING = (2.0, 1.5, 3.0)
ORIGIN = (-12.0, 5.0, 30.0)
"""First voxel in the axes of the patient (LPS), mm."""
STACK = np.random.default_rng(0).integers(-900, 1200, (COUNT, ROWS, COLUMNS)).astype(np.int16)
"""(z, y, x) in the axes of the patient (LPS)."""
SIZE = tuple((extent - 1) * step for extent, step in zip((COLUMNS, ROWS, COUNT), SPACING, strict=True))
TRUTH = Truth(
    voxels=STACK[:, ::-1, ::-1].astype(float),
    first=(-ORIGIN[0] - SIZE[0], -ORIGIN[1] - SIZE[1], ORIGIN[2]),
    last=(-ORIGIN[0], -ORIGIN[1], ORIGIN[2] + SIZE[2]),
)
POSITION, DIRECTIONS, PIXELS, SLOPE = (0x20, 0x32), (0x20, 0x37), (0x28, 0x30), (0x28, 0x1053)
NO_NUMBERS = ["", "x", "0\\0", "0\\0\\x", "0\\0\\nan", "0\\0\\inf", "0\\0\\1e300", "0\\0\\0\\0", "\\\\", "0\\0\\--3"]
KNOWN = {".DS_Store": b"\0\0\0\1Bud1", "._1.dcm": b"\0\5\x16\7" + bytes(200), "Thumbs.db": b"x" * 99}
KNOWN |= {".hidden/1.dcm": b"x"}
"""Files that lie beside scans and are none."""
Files = dict[str, bytes]


def example(what: str, files: Files, is_sound: bool | None, truth: Truth | None = TRUTH) -> Example:
    """Files of one scan in a folder of its own; `what` begins with the kind of scan."""
    placed = {f"{GIVEN}/{name}": content for name, content in files.items()}
    return Example(
        what=what, files=placed, read=lambda bench: bench.label(truth, may_be_refused=not is_sound), is_sound=is_sound
    )


def scans() -> st.SearchStrategy[Example]:
    """Spoilt scans of all kinds."""
    return st.one_of(*map(st.deferred, (spoilt_series, spoilt_frames, spoilt_nifti, spoilt_itk)))


def sound_scans() -> list[Example]:
    """One of each kind as it should be."""
    frames = frames_tags(STACK, _positions(), SPACING, [1] * COUNT)
    return [
        example("series: sound", _files(_slices()), True),
        example("frames: sound", {"scan/f.dcm": dicom_file(frames)}, True),
        example("nifti: sound", {"scan.nii.gz": gzip.compress(nifti().to_bytes())}, True),
        example("metaimage: sound", {"scan.mha": metaimage("LOCAL").encode() + STACK.tobytes()}, True),
        example("nrrd: sound", {"scan.nrrd": nrrd().encode() + b"\n" + STACK.tobytes()}, True),
    ]  # fmt: skip


# Series of slices.


def _positions() -> list[tuple[float, float, float]]:
    return [(ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * number) for number in range(COUNT)]


def _slices() -> list[Tags]:
    return [slice_tags(STACK[n], n, place, SPACING) for n, place in enumerate(_positions())]


def _files(slices: list[Tags]) -> Files:
    return {f"scan/{number + 1}.dcm": dicom_file(tags) for number, tags in enumerate(slices)}


@st.composite
def spoilt_series(draw: st.DrawFn) -> Example:
    """A series of slices with one thing wrong or unusual."""
    ways: list[Callable[[st.DrawFn], Example]] = [
        _names_in_no_order, _cut_file, _empty_file, _missing_slice, _position_of_one, _position_of_all, _directions,
        _pixels, _slopes, _other_size, _known_files, _second_series, _link, _copied, _parted, _moved, _bytes, _turned,
    ]  # fmt: skip
    return draw(st.sampled_from(ways))(draw)


def _any(draw: st.DrawFn) -> int:
    return draw(st.integers(0, COUNT - 1))


def _names_in_no_order(draw: st.DrawFn) -> Example:
    order = draw(st.permutations(range(COUNT)))
    ending = draw(st.sampled_from([".dcm", "", ".ima", ".DCM"]))
    files = {f"scan/IM{place:04d}{ending}": dicom_file(tags) for place, tags in zip(order, _slices(), strict=True)}
    return example("series: names in no order", files, True)


def _cut_file(draw: st.DrawFn) -> Example:
    files = _files(_slices())
    name = f"scan/{draw(st.sampled_from([1, 4, COUNT]))}.dcm"
    length = draw(st.integers(1, len(files[name]) - 1))
    files[name] = files[name][:length]
    # A file that is too short to say that it is DICOM is still called .dcm.
    return example(f"series: {name} cut", files, False)


def _empty_file(draw: st.DrawFn) -> Example:
    name = f"scan/{draw(st.sampled_from([1, 4, COUNT]))}.dcm"
    return example(f"series: {name} empty", _files(_slices()) | {name: b""}, False)


def _missing_slice(draw: st.DrawFn) -> Example:
    files = _files(_slices())
    for number in draw(st.sets(st.integers(2, COUNT - 1), min_size=1, max_size=3)):
        del files[f"scan/{number}.dcm"]
    # Every second slice of a stack is a sound one of thicker slices; such sets have five slices left at least.
    return example("series: slices missing", files, False)


def _position_of_one(draw: st.DrawFn) -> Example:
    slices, number = _slices(), _any(draw)
    if draw(st.booleans()):
        slices[number][POSITION] = ("DS", draw(st.sampled_from(NO_NUMBERS)))
    else:
        del slices[number][POSITION]
    return example("series: position of one slice", _files(slices), False)


def _position_of_all(draw: st.DrawFn) -> Example:
    slices, text = _slices(), draw(st.sampled_from([None, *NO_NUMBERS, "0\\0\\0"]))
    for tags in slices:
        tags.pop(POSITION) if text is None else tags.update({POSITION: ("DS", text)})
    return example("series: position of all slices", _files(slices), False)


def _directions(draw: st.DrawFn) -> Example:
    slices = _slices()
    values = [None, "", "1\\0\\0\\0\\1", "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "x", "1\\0\\0\\0\\nan\\0"]
    text = draw(st.sampled_from(values))
    chosen = slices if draw(st.booleans()) else [slices[_any(draw)]]
    for tags in chosen:
        tags.pop(DIRECTIONS) if text is None else tags.update({DIRECTIONS: ("DS", text)})
    return example("series: directions", _files(slices), False)


def _pixels(draw: st.DrawFn) -> Example:
    slices, text = _slices(), draw(st.sampled_from([None, "", "0\\0", "x", "-1\\2", "nan\\1", "1.5"]))
    for tags in slices:
        tags.pop(PIXELS) if text is None else tags.update({PIXELS: ("DS", text)})
    return example("series: spacing of pixels", _files(slices), False)


def _slopes(draw: st.DrawFn) -> Example:
    """Numbers are stored so that slope times number is the same as in the sound series."""
    slices = _slices()
    for number in range(COUNT):
        slope = draw(st.sampled_from([1.0, 2.0, 0.5]))
        values = np.round(STACK[number] / 2) * 2 / slope
        slices[number][SLOPE] = ("DS", f"{slope:g}")
        slices[number][0x7FE0, 0x10] = ("OW", values.astype("<i2").tobytes())
    even = Truth(voxels=(np.round(STACK / 2) * 2)[:, ::-1, ::-1], first=TRUTH.first, last=TRUTH.last)
    return example("series: slopes vary", _files(slices), None, even)


def _other_size(draw: st.DrawFn) -> Example:
    slices, number = _slices(), _any(draw)
    plane = np.zeros((ROWS + draw(st.sampled_from([-1, 1])), COLUMNS), np.int16)
    slices[number] = slice_tags(plane, number, _positions()[number], SPACING)
    return example("series: one slice of another size", _files(slices), False)


def _known_files(draw: st.DrawFn) -> Example:
    names = draw(st.sets(st.sampled_from(sorted(KNOWN)), min_size=1))
    beside = {f"scan/{name}": KNOWN[name] for name in names}
    return example("series: files that are no scan beside it", _files(_slices()) | beside, True)


def _second_series(draw: st.DrawFn) -> Example:
    others = [
        slice_tags(STACK[number], number, place, SPACING, series="1.2.3.8") for number, place in enumerate(_positions())
    ]
    count = draw(st.integers(1, COUNT))
    files = {f"scan/b{number}.dcm": dicom_file(tags) for number, tags in enumerate(others[:count])}
    return example("series: two in one folder", _files(_slices()) | files, False)


def _link(draw: st.DrawFn) -> Example:
    name = draw(st.sampled_from(["scan/9.dcm", "other.nii.gz", "scan2.nrrd"]))
    made = example("series: a link to nowhere beside it", _files(_slices()), False)
    return Example(
        what=made.what, files=made.files | {f"{GIVEN}/{name}": Path("nowhere")}, read=made.read, is_sound=False
    )


def _copied(draw: st.DrawFn) -> Example:
    files, number = _files(_slices()), _any(draw) + 1
    copies = range(1, COUNT + 1) if draw(st.booleans()) else [number]
    folder = draw(st.sampled_from(["scan/copy-", "scan/copy/"]))
    return example("series: copied twice", files | {f"{folder}{n}.dcm": files[f"scan/{n}.dcm"] for n in copies}, None)


def _parted(draw: st.DrawFn) -> Example:
    half = draw(st.integers(2, COUNT - 2))
    files = {f"scan/{'a' if n < half else 'b'}/{n}.dcm": dicom_file(tags) for n, tags in enumerate(_slices())}
    return example("series: in two folders", files, None)


def _moved(draw: st.DrawFn) -> Example:
    slices, number = _slices(), draw(st.integers(1, COUNT - 1))
    place = list(_positions()[number])
    place[draw(st.integers(0, 2))] += draw(st.sampled_from([1.0, -1.0, 50.0]))
    slices[number][POSITION] = ("DS", numbers(place))
    return example("series: one slice out of place", _files(slices), False)


def _bytes(draw: st.DrawFn) -> Example:
    files, name = _files(_slices()), f"scan/{_any(draw) + 1}.dcm"
    content = bytearray(files[name])
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.integers(0, len(content) - 2 * ROWS * COLUMNS))] = draw(st.integers(0, 255))
    return example("series: bytes of a header", files | {name: bytes(content)}, None, None)


def _turned(draw: st.DrawFn) -> Example:
    """Instance numbers that run against the positions, or are all the same."""
    slices, same = _slices(), draw(st.booleans())
    for number, tags in enumerate(slices):
        tags[0x20, 0x13] = ("IS", "1" if same else str(COUNT - number))
    return example("series: instance numbers", _files(slices), True)


# One file with many frames.


@st.composite
def spoilt_frames(draw: st.DrawFn) -> Example:
    """A multi-frame file whose frames lie in another way than their number says."""
    places, slopes, order = _positions(), [1.0] * COUNT, list(range(COUNT))
    way = draw(st.sampled_from(["order", "gap", "stacks", "none", "slopes", "number", "cut", "same"]))
    is_sound: bool | None = False
    if way == "order":
        order, is_sound = draw(st.permutations(order)), None
    elif way == "gap":
        after = draw(st.integers(1, COUNT - 1))
        places = [(x, y, z + 2 * SPACING[2] * (n >= after)) for n, (x, y, z) in enumerate(places)]
    elif way == "stacks":
        places = [places[number % (COUNT // 2)] for number in range(COUNT)]
    elif way == "same":
        places = [places[0]] * COUNT
    elif way == "slopes":
        slopes, is_sound = [draw(st.sampled_from([1.0, 2.0])) for _ in range(COUNT)], None
    places = [] if way == "none" else places
    stored = np.stack([STACK[n] // 2 if slopes[n] == 2 else STACK[n] // 2 * 2 for n in range(COUNT)])
    stack = stored if way == "slopes" else STACK
    tags = frames_tags(stack[order], [places[n] for n in order] if places else [], SPACING, [slopes[n] for n in order])
    if way == "number":
        tags[0x28, 8] = ("IS", draw(st.sampled_from(["7", "9", "0", "-1", "x", "100000000"])))
    content = dicom_file(tags)
    if way == "cut":
        content = content[: draw(st.integers(200, len(content) - 1))]
    even = Truth(voxels=(STACK // 2 * 2)[:, ::-1, ::-1].astype(float), first=TRUTH.first, last=TRUTH.last)
    return example(f"frames: {way}", {"scan/f.dcm": content}, is_sound, even if way == "slopes" else TRUTH)


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
    ways = [_odd_voxels, _odd_pixdim, _units, _quaternion, _no_forms, _axes, _packed, _kinds, _scaling]
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
            ])
        )  # fmt: skip
        return example("metaimage: grid", {"scan.mha": metaimage("LOCAL", **fields).encode() + STACK.tobytes()}, False)
    fields = draw(
        st.sampled_from([
            {"space": ""}, {"space_directions": ""}, {"space_directions": "(0,0,0) (0,1,0) (0,0,1)"},
            {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"},
            {"space_directions": "none none none"}, {"space": "", "space_directions": "", "spacings": "2 1.5 0"},
        ])
    )  # fmt: skip
    return example("nrrd: grid", {"scan.nrrd": nrrd(**fields).encode() + b"\n" + STACK.tobytes()}, False)


def _itk_packed(draw: st.DrawFn) -> Example:
    packed = bytearray(gzip.compress(STACK.tobytes()))
    way = draw(st.sampled_from(["sound", "cut", "flipped"]))
    if way == "flipped":
        packed[draw(st.integers(10, len(packed) - 5))] ^= 1 << draw(st.integers(0, 7))
    content = bytes(packed[: draw(st.integers(0, len(packed) - 20))] if way == "cut" else packed)
    return example(
        f"nrrd: {way} in gzip", {"scan.nrrd": nrrd(encoding="gzip").encode() + b"\n" + content}, way == "sound"
    )


def _beside(draw: st.DrawFn) -> Example:
    """A header whose voxels lie beside it, sound, absent or too short."""
    content = STACK.tobytes()
    data = draw(st.sampled_from([content, content[:-1], b"", None]))
    name, header = draw(st.sampled_from([("scan.mhd", metaimage("v.raw")), ("scan.nhdr", nrrd(data_file="v.raw"))]))
    files = {name: header.encode()} | ({} if data is None else {"v.raw": data})
    return example(f"itk: {name} beside its voxels", files, data == content)
