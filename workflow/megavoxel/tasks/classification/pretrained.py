"""Published ImageNet weights: fetched, read without running code, and given to a network of ours by key names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megavoxel.config.classification import PublishedWeights
from megavoxel.datasets.download import bring
from megavoxel.errors import UserError
from megavoxel.files import atomic_path, file_sha256
from megavoxel.network.tensor_files import load_tensors

HEADS = {"vgg16": "classifier.6.", "resnet50": "fc.", "densenet169": "classifier."}
"""Names of the published last layers, which know the 1000 classes of ImageNet."""
OWN_HEADS = {"vgg16": "classifier.6.", "resnet50": "fc.", "densenet169": "class_layers.out."}
COUNTERS = "num_batches_tracked"
"""Counters of batch norms, which nothing here reads, and which files of PyTorch before 0.4.1 do not have."""
DENSE_LAYER = re.compile(r"^(features\.denseblock\d+\.denselayer\d+\.)(norm|conv)\.?([12])\.")
"""Older files of torchvision write `norm.1.weight`, newer ones `norm1.weight`."""


def fetch_weights(weights: PublishedWeights, target: Path) -> None:
    """Brings published weights to `target`, whole or not at all, and holds them against their checksum.

    Raises:
        UserError: the file is missing, the server refuses, or the checksum is wrong.
    """
    with atomic_path(target) as partial:
        if weights.file is not None:
            source = Path(weights.file).expanduser()
            if not source.is_file():
                raise UserError(f"weights {source}: no such file; correct 'file' under weights of the study")
            partial.write_bytes(source.read_bytes())
        else:
            try:
                bring(weights.url, partial, is_checked=weights.sha256 is not None)
            except UserError as fault:
                raise UserError(
                    f"{weights.url}: could not be fetched ({fault}); bring the file by hand and name it as 'file' "
                    "under weights of the study"
                ) from None
        found = file_sha256(partial)
        if weights.sha256 is not None and not found.startswith(weights.sha256):
            raise UserError(
                f"{weights.file or weights.url}: wrong SHA-256: expected {weights.sha256}, the file has {found}; "
                "bring a good copy, or correct the checksum in the study"
            )


def load_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torchvision publishes, by name; nothing in it is run.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        content = load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights") from None
    except ValueError as fault:
        raise UserError(f"{path}: cannot be read as weights of PyTorch ({fault}); bring a whole copy") from None
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: expected tensors by name (a state_dict), as torchvision publishes them")
    return dict(content)


def give_published(network: nn.Module, name: str, published: dict[str, Tensor], *, source: Any) -> int:
    """Gives a network all published tensors but those of the last layer, which keeps its random weights.

    Args:
        network: as `build_network` makes it.
        published: by torchvision's names.

    Returns:
        Tensors that it was given.

    Raises:
        UserError: a tensor is missing, is none of this network, or has another shape.
    """
    own = network.state_dict()
    given = {our_name(key, name): value for key, value in published.items() if not key.startswith(HEADS[name])}
    needed = {key for key in own if not key.startswith(OWN_HEADS[name])}
    missing = sorted(key for key in needed - given.keys() if not key.endswith(COUNTERS))
    extra = sorted(given.keys() - needed)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which is not of this network"
        raise UserError(f"{source}: no published weights of {name}: it {what}; name the file of {name} itself")
    for key, value in given.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{source}: no published weights of {name}: {key} has the shape {tuple(value.shape)}, expected "
                f"{tuple(own[key].shape)}"
            )
    network.load_state_dict(given, strict=False)
    return len(given)


def our_name(key: str, name: str) -> str:
    """What a tensor of torchvision's layout is called in our network."""
    return DENSE_LAYER.sub(r"\1layers.\2\3.", key) if name == "densenet169" else key
