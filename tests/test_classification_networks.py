"""Networks of classification, and published weights in torchvision's layout, built here by its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megavoxel.config.classification import PublishedWeights
from megavoxel.errors import UserError
from megavoxel.network.segmentation import parameter_count
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.pretrained import fetch_weights, give_published, load_published

PUBLISHED_COUNTS = {"vgg16": 138_357_544, "resnet50": 25_557_032, "densenet169": 14_149_480}
"""Parameters that torchvision's documentation states, with 1000 classes."""
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def norm(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)


def vgg16() -> Shapes:
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for place, before, after in zip(places, widths, widths[1:], strict=False):
        yield f"features.{place}.weight", (after, before, 3, 3)
        yield f"features.{place}.bias", (after,)
    for place, before, after in ((0, 25088, 4096), (3, 4096, 4096), (6, 4096, 1000)):
        yield f"classifier.{place}.weight", (after, before)
        yield f"classifier.{place}.bias", (after,)


def resnet50() -> Shapes:
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            for number, (before, after, size) in enumerate(
                ((channels, width, 1), (width, width, 3), (width, 4 * width, 1)), start=1
            ):
                yield f"{place}.conv{number}.weight", (after, before, size, size)
                yield from norm(f"{place}.bn{number}", after)
            if block == 0:
                yield f"{place}.downsample.0.weight", (4 * width, channels, 1, 1)
                yield from norm(f"{place}.downsample.1", 4 * width)
            channels = 4 * width
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def densenet169() -> Shapes:
    yield "features.conv0.weight", (64, 3, 7, 7)
    yield from norm("features.norm0", 64)
    channels = 64
    for block, layers in enumerate((6, 12, 32, 32), start=1):
        for layer in range(1, layers + 1):
            place = f"features.denseblock{block}.denselayer{layer}"
            yield from norm(f"{place}.norm1", channels)
            yield f"{place}.conv1.weight", (128, channels, 1, 1)
            yield from norm(f"{place}.norm2", 128)
            yield f"{place}.conv2.weight", (32, 128, 3, 3)
            channels += 32
        if block < 4:
            yield from norm(f"features.transition{block}.norm", channels)
            yield f"features.transition{block}.conv.weight", (channels // 2, channels, 1, 1)
            channels //= 2
    yield from norm("features.norm5", channels)
    yield "classifier.weight", (1000, channels)
    yield "classifier.bias", (1000,)


LAYOUTS: dict[str, Callable[[], Shapes]] = {"vgg16": vgg16, "resnet50": resnet50, "densenet169": densenet169}


def published(name: str) -> dict[str, Tensor]:
    """Tensors of a network in torchvision's layout, each of values of its own, small enough to keep outputs finite."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, shape in LAYOUTS[name]():
        scale = max(1, torch.Size(shape[1:]).numel()) ** -0.5
        tensors[key] = torch.randn(shape, generator=generator) * scale
        if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            tensors[key] = tensors[key].abs() + 0.5
    return tensors


def batch_norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, weight, bias = (
        tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(x, mean, variance, weight, bias)


def resnet50_features(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """He et al. (2016), with the stride in the 3x3 convolution as in torchvision; by names of the published tensors."""
    x = functional.conv2d(x, tensors["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(batch_norm(x, tensors, "bn1")), 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            place, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = x
            for number, (step, padding) in enumerate(((1, 0), (stride, 1), (1, 0)), start=1):
                y = functional.conv2d(y, tensors[f"{place}.conv{number}.weight"], stride=step, padding=padding)
                y = batch_norm(y, tensors, f"{place}.bn{number}")
                y = functional.relu(y) if number < 3 else y
            if block == 0:
                x = functional.conv2d(x, tensors[f"{place}.downsample.0.weight"], stride=stride)
                x = batch_norm(x, tensors, f"{place}.downsample.1")
            x = functional.relu(x + y)
    return x.mean(dim=(2, 3))


def densenet169_features(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Huang et al. (2017); by names of the published tensors."""

    def active(x: Tensor, name: str) -> Tensor:
        return functional.relu(batch_norm(x, tensors, f"features.{name}"))

    def convolved(x: Tensor, name: str, **keys: int) -> Tensor:
        return functional.conv2d(x, tensors[f"features.{name}.weight"], **keys)

    x = functional.max_pool2d(active(convolved(x, "conv0", stride=2, padding=3), "norm0"), 3, stride=2, padding=1)
    for block, layers in enumerate((6, 12, 32, 32), start=1):
        for layer in range(1, layers + 1):
            place = f"denseblock{block}.denselayer{layer}"
            y = convolved(active(x, f"{place}.norm1"), f"{place}.conv1")
            x = torch.cat([x, convolved(active(y, f"{place}.norm2"), f"{place}.conv2", padding=1)], dim=1)
        if block < 4:
            x = functional.avg_pool2d(convolved(active(x, f"transition{block}.norm"), f"transition{block}.conv"), 2)
    return active(x, "norm5").mean(dim=(2, 3))


@pytest.mark.parametrize("name", LAYOUTS)
def test_networks_have_the_published_number_of_parameters(name):
    statistics = ("running_mean", "running_var")
    layout = sum(torch.Size(shape).numel() for key, shape in LAYOUTS[name]() if not key.endswith(statistics))
    assert layout == parameter_count(build_network(name, 1000)) == PUBLISHED_COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_tensor_lands_but_those_of_the_last_layer(name):
    tensors, network = published(name), build_network(name, 7)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    given = give_published(network, name, tensors, source="file")
    assert given == len(tensors) - 2
    after = network.state_dict()
    floating = {key for key in after if not key.endswith("num_batches_tracked")}
    same = {key for key in floating if torch.equal(before[key], after[key])}
    assert len(same) == 2  # weight and bias of the new last layer
    assert after[next(key for key in same if key.endswith("weight"))].shape[0] == 7
    sums = sorted(value.double().sum().item() for key, value in after.items() if key in floating - same)
    heads = [key for key, shape in LAYOUTS[name]() if shape[0] == 1000]
    assert sums == sorted(value.double().sum().item() for key, value in tensors.items() if key not in heads)


@pytest.mark.parametrize(
    ("name", "features", "head"),
    [("resnet50", resnet50_features, "fc"), ("densenet169", densenet169_features, "class_layers.out")],
)
def test_networks_compute_what_their_papers_say_with_the_published_names(name, features, head):
    tensors, network = published(name), build_network(name, 5).eval()
    give_published(network, name, tensors, source="file")
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    weight, bias = (network.state_dict()[f"{head}.{part}"] for part in ("weight", "bias"))
    with torch.no_grad():
        torch.testing.assert_close(network(image), features(image, tensors) @ weight.T + bias, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_older_names_of_dense_layers_are_known_and_counters_may_be_there():
    tensors = published("densenet169")
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in tensors.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    older["features.norm0.num_batches_tracked"] = torch.tensor(3)
    one, two = build_network("densenet169", 2), build_network("densenet169", 2)
    give_published(one, "densenet169", tensors, source="a")
    give_published(two, "densenet169", older, source="b")
    for key, value in one.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, two.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("layer1.0.conv1.weight"), "lacks layer1.0.conv1.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "has extra, which is not of this network"),
        (
            lambda tensors: tensors.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"conv1.weight has the shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(change, message):
    tensors = published("resnet50")
    change(tensors)
    with pytest.raises(UserError, match=message):
        give_published(build_network("resnet50", 2), "resnet50", tensors, source="weights.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_both_of_pytorchs_formats_are_read(tmp_path, zipped):
    torch.save({"a": torch.arange(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert load_published(tmp_path / "w.pth")["a"].tolist() == [0, 1, 2]


class Trap:
    """An object whose unpickling would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"a": Trap(str(tmp_path / "sprung"))}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_published(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_checksum_may_be_the_first_digits_and_must_be_right(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    from megavoxel.files import file_sha256

    good = file_sha256(tmp_path / "w.pth")[:8]
    fetch_weights(PublishedWeights(file=str(tmp_path / "w.pth"), sha256=good), tmp_path / "kept.pth")
    assert (tmp_path / "kept.pth").read_bytes() == (tmp_path / "w.pth").read_bytes()
    with pytest.raises(UserError, match="wrong SHA-256: expected 00000000"):
        fetch_weights(PublishedWeights(file=str(tmp_path / "w.pth"), sha256="00000000"), tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()


def test_weights_are_fetched_from_an_address(tmp_path):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    from megavoxel.files import file_sha256

    address = f"http://127.0.0.1:{server.server_port}"
    digest = file_sha256(tmp_path / "w.pth")
    fetch_weights(PublishedWeights(url=f"{address}/w.pth", sha256=digest), tmp_path / "kept" / "net.pth")
    assert load_published(tmp_path / "kept" / "net.pth")["a"].item() == 1
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_weights(PublishedWeights(url=f"{address}/none.pth", sha256=digest), tmp_path / "kept" / "other.pth")
    server.shutdown()


def test_weights_depend_on_the_seed_alone():
    one, same, other = (build_network("small", 2, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])
