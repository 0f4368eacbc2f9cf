"""Where a stage computes: a GPU that is asked for or granted and cannot be used is an error, never a silent CPU."""

from __future__ import annotations

import pytest
import torch

from helpers import three_cases, tiny_plan
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.network.device import GRANTED_BY_SLURM, choose_device, require_kernels
from megavoxel.planning.plan import save_plan

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
WAY_OUT = "to try it on the processor instead: --device cpu, in a study snakemake --config device=cpu"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A machine whose PyTorch sees no GPU, outside of Slurm."""

    def told_why():
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.init", told_why)
    for name in GRANTED_BY_SLURM:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", GRANTED_BY_SLURM)
def test_a_job_with_a_gpu_that_pytorch_does_not_see_ends_with_its_reason(monkeypatch, variable):
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setenv(variable, "0")
    with pytest.raises(UserError) as found:
        choose_device("auto")
    assert str(found.value) == (
        f"--device auto: Slurm gave this job a GPU ({variable}): PyTorch sees no GPU here (The NVIDIA driver on your "
        f"system is too old (found version 11040)); {WAY_OUT}"
    )
    assert choose_device("cpu") == torch.device("cpu")


def test_training_of_a_study_for_gpus_does_no_work_without_one(tmp_path, monkeypatch, capsys):
    fold = three_cases(tmp_path)
    save_plan(tmp_path / "plan.json", tiny_plan())
    split = {"training": list(fold.training), "validation": list(fold.validation)}
    write_json(tmp_path / "splits.json", {"folds": [split]})
    write_json(tmp_path / "hardware.yaml", {"devices": {"card": {"kind": "gpu", "memory_gib": 80}}})
    monkeypatch.chdir(tmp_path)
    words = ["train", "--plan", "plan.json", "--splits", "splits.json", "--preprocessed", "cases", "--fold", "0"]
    words += ["--state", "state", "--output", "out", "--hardware", "hardware.yaml", "card"]
    assert main(words) == 1
    assert "--device cuda: PyTorch sees no GPU here (The NVIDIA driver" in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoint*"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capability", "kernels", "build"),
    [
        ((7, 0), CUDA_13, "the build for CUDA 12.6, which supports 5.0 to 9.0: pip install torch=="),
        ((6, 0), CUDA_13, "the build for CUDA 12.6"),
        ((12, 0), ["sm_80", "sm_90"], "a build of PyTorch that supports it"),
        ((8, 0), ["sm_86"], "a build of PyTorch that supports it"),
    ],
)
def test_a_gpu_without_kernels_is_refused_with_the_build_that_has_them(monkeypatch, capability, kernels, build):
    described(monkeypatch, capability, kernels)
    with pytest.raises(UserError) as found:
        require_kernels(torch.device("cuda:0"))
    number = f"{capability[0]}.{capability[1]}"
    assert str(found.value).startswith(f"A card has compute capability {number}, and this build of PyTorch (")
    assert build in str(found.value)
    assert str(found.value).endswith(WAY_OUT)


@pytest.mark.parametrize(
    ("capability", "kernels"),
    [
        ((9, 0), CUDA_13),
        ((8, 9), CUDA_13),  # an RTX 4090 takes those of 8.6
        ((12, 1), CUDA_13),
        ((9, 0), ["sm_90a"]),
        ((7, 0), ["sm_50", "sm_60", "sm_70", "sm_75"]),
        ((13, 0), ["sm_90", "compute_120"]),  # compiled when it is first used
        ((9, 4), ["gfx942"]),  # AMD
    ],
)
def test_a_gpu_with_kernels_is_taken(monkeypatch, capability, kernels):
    described(monkeypatch, capability, kernels)
    require_kernels(torch.device("cuda:0"))


def described(monkeypatch, capability: tuple[int, int], kernels: list[str]) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "A card")
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: kernels)
