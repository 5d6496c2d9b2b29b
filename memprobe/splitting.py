"""Models larger than a device: their blocks over several devices, main memory and the disk (accelerate's dispatch).

``split`` (``--device-map auto``) in place of a device's name fills the GPUs, then main memory, then the disk;
``split:cpu=8GiB,0=70GiB`` says how much of each. A block's weights come to their device when it runs; what it puts out
is brought to the model's home, where the readout is, so that whoever reads or edits streams meets one device.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError
from memprobe.sizes import parse_size

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

SPLIT = "split"
_HOOK_MARKS = ("_hf_hook", "_old_forward", "forward")


def device_text(device: str, device_map: str | None, max_memory: str | None) -> str:
    """``--device``, ``--device-map`` and ``--max-memory`` as the one text that stands for a device.

    Raises:
        MemprobeError: a map that is not known, or options that exclude each other.
    """
    if device_map is None:
        if max_memory is not None:
            raise MemprobeError("--max-memory says how a model is split: give --device-map auto with it")
        return device
    if device_map != "auto":
        raise MemprobeError(f"--device-map {device_map}: give auto")
    if device != "auto":
        raise MemprobeError("--device names one device, --device-map auto uses all: give one of the two")
    text = SPLIT if max_memory is None else f"{SPLIT}:{max_memory}"
    memory_of(text)
    return text


def is_split(device: str) -> bool:
    """Whether a device's text asks for a split."""
    return device == SPLIT or device.startswith(f"{SPLIT}:")


def memory_of(device: str) -> dict[int | str, int] | None:
    """Bytes that each device may hold, of ``split:cpu=8GiB,0=70GiB``.

    Raises:
        MemprobeError: it says something else.
    """
    shares = device.partition(":")[2]
    if not shares:
        return None
    memory: dict[int | str, int] = {}
    for share in shares.split(","):
        name, _, size = (piece.strip() for piece in share.partition("="))
        if not (name == "cpu" or name.isdecimal()) or not size.upper().endswith("B"):
            raise MemprobeError(f"--max-memory {shares}: write DEVICE=SIZE, as in cpu=8GiB,0=70GiB")
        memory[int(name) if name.isdecimal() else name] = parse_size(size)
    return memory


def load_split(read: Any, device: str) -> PreTrainedModel:
    """A model over the devices.

    Args:
        read: :func:`memprobe.hf.read_model`, but for its placement.
        device: see the module.

    Raises:
        MemprobeError: see :func:`memprobe.hf.read_model`.
    """
    folder = tempfile.mkdtemp(prefix="memprobe-offload-")
    try:
        model = read(device_map="auto", max_memory=memory_of(device), offload_folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    # Weights that come and go are made anew in each pass, also without gradients: none can be asked to want one.
    return model.requires_grad_(False)


def home_of(model: nn.Module) -> torch.device:
    """Where a model's inputs, its streams and its readout are: its device, or the first of those it is split over."""
    import torch

    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return model.device  # type: ignore[return-value]


def gather_streams(model: nn.Module, blocks: list[nn.Module]) -> None:
    """From now on brings what each block of a model over several devices puts out to its home."""
    from memprobe.blocks import (
        first_of,
        with_first,
    )  # imports torch, which the command line's options must not

    devices = {str(place) for place in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk"}
    if len(devices) < 2:
        return
    home = home_of(model)

    def bring(_: nn.Module, __: Any, output: Any) -> Any:
        return with_first(output, first_of(output).to(home))

    for block in blocks:
        block.register_forward_hook(bring)


@contextlib.contextmanager
def weights_here(module: nn.Module) -> Iterator[None]:
    """A module's own weights, which may wait in main memory or on the disk, where they run."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def own_copy(module: nn.Module, home: torch.device) -> nn.Module:
    """An fp32 copy of a module at a device, with its weights and without accelerate's hooks."""
    parts = list(module.modules())
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(weights_here(part))
        kept = [
            {name: part.__dict__.pop(name) for name in _HOOK_MARKS if name in part.__dict__} for part in parts
        ]
        try:
            made = copy.deepcopy(module).float().to(home)
        finally:
            for part, marks in zip(parts, kept, strict=True):
                part.__dict__.update(marks)
    for parameter in made.parameters():
        if parameter.is_meta:
            raise MemprobeError(f"the weights of {type(module).__name__} cannot be brought to {home}")
    return made
