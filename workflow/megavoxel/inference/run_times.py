"""Networks in files of other formats, which another program than PyTorch runs, in float32 on a CPU.

Such a file takes windows of one size: `window`, float32 (1, input channels, z, y, x), becomes `logits`, float32
(1, classes, z, y, x). It states the hash of the plan that it was trained under.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavoxel.errors import UserError
from megavoxel.planning.patch import WHOLE, prediction_window
from megavoxel.planning.plan import Plan

if TYPE_CHECKING:  # PyTorch is loaded when there is something to predict
    import numpy as np
    from torch import Tensor

WINDOW, LOGITS, PLAN_HASH = "window", "logits", "plan_hash"
"""Names of the input, of the output and of what the file states."""
OPSET = 20
"""Version of ONNX's set of operators."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network as its program has opened it."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    """Type and shape by name."""
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    plan_hash: str | None
    run: Callable[[np.ndarray], np.ndarray]
    """Logits of a window."""


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """A program that runs networks."""

    format: str
    """Name of the format of its files, for readers."""
    package: str
    extra: str
    """Extra of megavoxel that installs the package."""
    open: Callable[[Any, Path, int], Opened]
    """By its module, file and number of threads; may raise anything."""

    def module(self, *others: str) -> Any:
        """Its module.

        Args:
            others: packages that have to be there as well.

        Raises:
            UserError: it is not installed; names the extra.
        """
        try:
            return [import_module(name) for name in (*others, self.package)][-1]
        except ImportError as fault:
            raise UserError(
                f"{self.format}: needs {' and '.join((*others, self.package))} ({fault}): "
                f"pip install 'megavoxel[{self.extra}]'"
            ) from None


def _open_onnx(onnxruntime: Any, path: Path, threads: int) -> Opened:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is wrong is in the exception
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Opened(
        inputs={one.name: (_plain_type(one.type), tuple(one.shape)) for one in session.get_inputs()},
        outputs={one.name: (_plain_type(one.type), tuple(one.shape)) for one in session.get_outputs()},
        plan_hash=session.get_modelmeta().custom_metadata_map.get(PLAN_HASH),
        run=lambda window: session.run([LOGITS], {WINDOW: window})[0],
    )


def _plain_type(name: str) -> str:
    """ONNX's name of a type, as NumPy has it."""
    return "float32" if name == "tensor(float)" else name


def _open_openvino(openvino: Any, path: Path, threads: int) -> Opened:
    core = openvino.Core()
    model = core.read_model(path)
    # Processors with bfloat16 take it unless they are told otherwise.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", options)
    stated = [*OPENVINO_ROOT, PLAN_HASH]
    return Opened(
        inputs={one.any_name: (one.element_type.to_dtype().name, tuple(one.shape)) for one in model.inputs},
        outputs={one.any_name: (one.element_type.to_dtype().name, tuple(one.shape)) for one in model.outputs},
        plan_hash=model.get_rt_info(stated).astype(str) if model.has_rt_info(stated) else None,
        run=lambda window: compiled({WINDOW: window})[LOGITS],
    )


OPENVINO_ROOT = ("megavoxel",)
"""Where what megavoxel states is in the run-time information of a model of OpenVINO."""
RUN_TIMES = {
    ".onnx": RunTime(format=f"ONNX, opset {OPSET}", package="onnxruntime", extra="onnx", open=_open_onnx),
    ".xml": RunTime(format="OpenVINO", package="openvino", extra="openvino", open=_open_openvino),
}
"""By the suffix of their files."""


def run_time_of(weights: str | Path) -> RunTime | None:
    """The program that runs the network of a file; None: PyTorch."""
    return RUN_TIMES.get(Path(weights).suffix)


def device_of(weights: Sequence[Path], named: str | None) -> str | None:
    """The device on which the networks of files run, where the user has named one or none.

    Raises:
        UserError: it is none that their program uses.
    """
    run_time = run_time_of(weights[0])
    if run_time is None:
        return named
    if named not in (None, "auto", "cpu"):
        raise UserError(
            f"--device {named}: {weights[0]} runs on a CPU ({run_time.package}); leave it out, or take a model with "
            "the weights of PyTorch"
        )
    return "cpu"


class NetworkOfRunTime:
    """A network that another program runs.

    Args:
        plan: the setting.
        path: its file.
        threads: of the program.

    Raises:
        UserError: the program is not installed, or the file is damaged, foreign or of another plan.
    """

    def __init__(self, plan: Plan, path: Path, threads: int) -> None:
        run_time = RUN_TIMES[path.suffix]
        module = run_time.module()
        try:
            self._opened = run_time.open(module, path, threads)
        except Exception as fault:
            told = " ".join(str(fault).split())[:200]
            raise UserError(f"{path}: no network of megavoxel, or damaged ({told})") from None
        window, logits = shapes_of(plan, path)
        _require(path, WINDOW, self._opened.inputs, window)
        _require(path, LOGITS, self._opened.outputs, logits)
        found = self._opened.plan_hash
        if found != plan.hash:
            raise UserError(f"{path}: was trained under another plan ({found}, expected {plan.hash}); export it again")

    def __call__(self, window: Tensor) -> list[Tensor]:
        """Logits, float32 (1, classes, z, y, x), of a window, float32 (1, input channels, z, y, x)."""
        import numpy as np
        import torch

        return [torch.from_numpy(np.array(self._opened.run(window.contiguous().numpy())))]


def shapes_of(plan: Plan, where: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the windows and of the logits of a plan.

    Raises:
        UserError: its windows have no fixed size; names `where`.
    """
    if plan.inference.window == WHOLE:
        raise UserError(
            f"{where}: inference.window is whole, and a network in another format than PyTorch's takes windows of one "
            "size; leave out --format, or train with a window of voxels per axis"
        )
    window = prediction_window(plan, plan.patch)
    return (1, plan.network.input_channels, *window), (1, plan.network.classes, *window)


def _require(path: Path, name: str, found: Mapping[str, tuple[str, tuple[int, ...]]], shape: tuple[int, ...]) -> None:
    wanted = {name: ("float32", shape)}
    if found != wanted:
        shown = "; ".join(f"{own} {kind} {list(sizes)}" for own, (kind, sizes) in found.items())
        raise UserError(
            f"{path}: not the network of the plan: it has {shown}; expected {name} float32 {list(shape)}; export it "
            "again"
        )
