"""What a program asks of `torch.cuda` and of NCCL, answered for pretended GPUs.

| variable | does |
| --- | --- |
| `REHEARSAL_DEVICES` | number of GPUs (1; at most 8) |
| `REHEARSAL_MEMORY_GIB` | memory of each (80) |
| `REHEARSAL_OTHERS_GIB` | what other processes hold of it (0) |
| `REHEARSAL_BFLOAT16=0` | GPUs like a V100 |
| `REHEARSAL_CACHE` | folder of the compiled guard |
"""

from __future__ import annotations

import ctypes
import os
import types
from typing import Any

import pretended_tensor
import torch
from pretended_tensor import CONTEXT_BYTES, PretendedTensor, Pretending, memory, note_wait
from torch.optim.optimizer import _foreach_supported_types

DEVICES = int(os.environ.get("REHEARSAL_DEVICES", "1"))
card = types.SimpleNamespace(has_bfloat16=os.environ.get("REHEARSAL_BFLOAT16", "1") == "1")
"""What the GPUs can do; a V100 has no bfloat16."""


def install(library: ctypes.CDLL) -> None:
    """Makes PyTorch, and what is built on it, believe in `DEVICES` GPUs; `library` is the guard."""
    memory.limit = round(float(os.environ.get("REHEARSAL_MEMORY_GIB", "80")) * 2**30)
    memory.others = round(float(os.environ.get("REHEARSAL_OTHERS_GIB", "0")) * 2**30)
    pretended_tensor.current_device = library.rehearsal_device
    _answer_for_cuda(library)
    torch._C._set_only_lift_cpu_tensors(True)
    # A wrapper cannot stand in place of a parameter's data: a module on its way to the GPU gets new parameters.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _foreach_supported_types.append(PretendedTensor)
    torch.Tensor.pin_memory = lambda self, _device=None: self
    torch.distributed.init_process_group = _with_gloo(torch.distributed.init_process_group)
    Pretending().__enter__()


def _answer_for_cuda(library: ctypes.CDLL) -> None:
    def number(device: Any = None) -> int:
        found = device if isinstance(device, int) else None if device is None else torch.device(device).index
        index = library.rehearsal_device() if found is None else found
        if not 0 <= index < DEVICES:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return index

    def leave(part: float) -> None:
        memory.others = round((1 - part) * (memory.limit - CONTEXT_BYTES))

    def properties(device: Any = None) -> Any:
        number(device)
        capability = {"major": 9 if card.has_bfloat16 else 7, "minor": 0}
        name, total = f"pretended GPU ({memory.limit / 2**30:g} GiB)", memory.limit
        return types.SimpleNamespace(name=name, total_memory=total, multi_processor_count=132, **capability)

    answers = {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_available": lambda: DEVICES > 0,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: DEVICES,
        "current_device": number,
        "set_device": lambda device: library.rehearsal_set_device(number(device)),
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: (properties(device).major, properties(device).minor),
        "get_arch_list": lambda: ["sm_70", "sm_80", "sm_90"],
        "is_bf16_supported": lambda including_emulation=True: card.has_bfloat16 or including_emulation,
        "synchronize": lambda _device=None: note_wait("synchronize"),
        "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda _mode: None,
        "set_per_process_memory_fraction": lambda part, _device=None: leave(part),
        "mem_get_info": lambda device=None: (
            memory.limit - CONTEXT_BYTES - memory.others - memory.live[number(device)],
            memory.limit,
        ),
        "memory_allocated": lambda device=None: memory.live[number(device)],
        "memory_reserved": lambda device=None: memory.live[number(device)],
        "max_memory_allocated": lambda device=None: memory.peak[number(device)],
        "max_memory_reserved": lambda device=None: memory.peak[number(device)],
        "reset_peak_memory_stats": lambda device=None: memory.reset_peak(number(device)),
        "manual_seed": lambda _seed: None,
        "manual_seed_all": lambda _seed: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.amp.grad_scaler.amp_definitely_not_available = lambda: False
    torch.version.cuda = "pretended"
    torch.backends.cudnn.version = lambda: 0


def _with_gloo(begin: Any) -> Any:
    """NCCL becomes gloo, whose messages are the numbers behind the tensors."""

    def init_process_group(backend: str | None = None, *args: Any, **keys: Any) -> None:
        begin("gloo" if backend == "nccl" else backend, *args, **keys)

    return init_process_group
