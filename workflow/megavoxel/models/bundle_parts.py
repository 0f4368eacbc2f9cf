"""What the configuration of a bundle names: the network, the sliding window, the scans, and the loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.inference.predict import CasePredictor
from megavoxel.models.description import load_description, require_as_exported
from megavoxel.models.directory import DESCRIPTION, PLAN, POSTPROCESSING
from megavoxel.models.label import Labelling, label_scans, unfinished
from megavoxel.models.prepare import Reading
from megavoxel.models.scans import Scan, find_scans
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.tensor_files import load_tensors
from megavoxel.network.weights import fill_network
from megavoxel.planning.plan import load_plan


class FoldEnsemble(nn.Module):
    """The networks of all folds.

    Args:
        configs: the bundle's folder of that name.

    Raises:
        UserError: the plan is damaged, or another one than was exported.
    """

    def __init__(self, configs: str) -> None:
        super().__init__()
        self.configs = Path(configs)
        description = load_description(self.configs / DESCRIPTION)
        require_as_exported(self.configs / DESCRIPTION, description, [self.configs / PLAN])
        self.plan = load_plan(self.configs / PLAN)
        self.precision = description.folds[0].precision
        self.networks = nn.ModuleList(SegmentationNetwork(self.plan.network) for _ in description.folds)

    def forward(self, window: Tensor) -> Tensor:
        """Mean logits (1, classes, z, y, x) of a preprocessed window (1, channels, z, y, x), in float32."""
        return torch.stack([network(window)[0].float() for network in self.networks]).mean(dim=0)


class WindowInferer(Inferer):
    """The sliding window of the setting, with its weights and mirror images.

    Args:
        network: whose weights are read here.
        ckpt_path: model.pt of the bundle.
        device: where it runs.

    Raises:
        UserError: the weights are missing, damaged, changed since the export, or of another network.
    """

    def __init__(self, network: FoldEnsemble, ckpt_path: str, device: torch.device | str) -> None:
        super().__init__()
        where = network.configs / DESCRIPTION
        require_as_exported(where, load_description(where), [Path(ckpt_path)])
        try:
            weights = load_tensors(Path(ckpt_path))
        except (FileNotFoundError, ValueError) as fault:
            raise UserError(f"{ckpt_path}: missing or damaged weights ({fault}); copy the bundle again") from None
        fill_network(network, weights, Path(ckpt_path))
        networks = list(network.networks)
        self.predictor = CasePredictor(network.plan, networks, network.precision, torch.device(device))

    def __call__(self, inputs: Tensor, network: nn.Module | None = None) -> Tensor:  # noqa: ARG002
        """Mean logits (1, classes, z, y, x) of a whole preprocessed image (1, channels, z, y, x).

        Args:
            inputs: the image.
            network: for MONAI's interface; the networks are those that the inferer was made with.
        """
        image = inputs[0].cpu().numpy()
        logits = torch.zeros(self.predictor.plan.network.classes, *image.shape[1:])
        for slab in self.predictor.slabs(image):
            logits[slab.place] = slab.logits.cpu()
        return logits[None]


class Labeller:
    """Labels scans as `megavoxel predict --model` does.

    Args:
        inferer: with the networks.
        dataset: the scans.
        configs: the bundle's folder of that name.
        output_dir: folder for the label maps; finished ones are skipped.
        modality: of the scans, where the model has several.
        probabilities: whether probabilities are written, too.
    """

    def __init__(
        self,
        inferer: WindowInferer,
        dataset: Sequence[Scan],
        configs: str,
        output_dir: str,
        modality: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self.predictor, self.scans = inferer.predictor, dataset
        description = load_description(Path(configs) / DESCRIPTION)
        rules = Path(configs) / POSTPROCESSING
        if rules.is_file() or description.postprocessed:
            require_as_exported(Path(configs) / DESCRIPTION, description, [rules])
        self.labelling = Labelling(
            output=Path(output_dir),
            model={"model": description.name, **description.sha256},
            postprocessing=load_postprocessing(rules) if rules.is_file() else None,
            reading=Reading(modality=modality),
            probabilities=probabilities,
        )

    def run(self) -> None:
        """Labels those that have no label map yet.

        Raises:
            UserError: the faults of all scans that could not be labelled, after the others were.
        """
        label_scans(unfinished(self.scans, self.labelling), self.predictor, self.labelling)


def scans_in(dataset_dir: str) -> list[Scan]:
    """The scans of a folder, and what is neither a scan nor known to be none."""
    return find_scans([Path(dataset_dir)])
