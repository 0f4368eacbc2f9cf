"""Scans that are handed in to be labelled, each spoilt in a way that people reported, and what they really hold.

Where a spoilt one is taken, its voxels and its place in the patient have to be those of the sound one.
"""

from __future__ import annotations

import gzip

from hypothesis import strategies as st

from dicom_files import dicom_file, frames_tags
from fuzz_dicom import files_of, positions, sound_slices, spoilt_frames, spoilt_series
from fuzz_example import Example
from fuzz_image import COUNT, SPACING, STACK, example
from fuzz_tiff import spoilt_tiff, stack
from fuzz_volumes import metaimage, nifti, nrrd, spoilt_itk, spoilt_nifti


def scans() -> st.SearchStrategy[Example]:
    """Spoilt scans of all kinds."""
    return st.one_of(*map(st.deferred, (spoilt_series, spoilt_frames, spoilt_nifti, spoilt_itk, spoilt_tiff)))


def sound_scans() -> list[Example]:
    """One of each kind as it should be."""
    frames = frames_tags(STACK, positions(), SPACING, [1] * COUNT)
    return [
        example("series: sound", files_of(sound_slices()), True),
        example("frames: sound", {"scan/f.dcm": dicom_file(frames)}, True),
        example("nifti: sound", {"scan.nii.gz": gzip.compress(nifti().to_bytes())}, True),
        example("metaimage: sound", {"scan.mha": metaimage("LOCAL").encode() + STACK.tobytes()}, True),
        example("nrrd: sound", {"scan.nrrd": nrrd().encode() + b"\n" + STACK.tobytes()}, True),
        example("tiff: sound", {"scan.ome.tif": stack()}, True, None),
    ]  # fmt: skip
