"""Offloading weights to host memory while nothing needs them. Meanwhile their tensors are empty: no byte on the device.

Works on tensors in place, so modules, optimisers and PEFT keep holding the same parameters. What is offloaded during PPO (the
reference, policy, reward and value adapters) is decided in session.py, `PPOModels.enable_offload`; `AdapterSet.on_device` brings
a role back for a block.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class OffloadableWeights:
    """A set of tensors that is offloaded and loaded back together.

    tensors: parameters and buffers; a 4-bit bitsandbytes weight takes its quantisation state along.
    frozen: they never change, so their host copy stays valid and offloading copies nothing.
    """

    def __init__(self, tensors: Iterable[Tensor], frozen: bool = False) -> None:
        unique = {id(tensor): tensor for tensor in tensors}  # tied weights appear twice
        self._places = [place for tensor in unique.values() for place in _places(tensor)]
        self._frozen = frozen
        self._host: list[Tensor] = []
        self.offloaded = False

    def offload(self) -> None:
        """Move to host memory."""
        if self.offloaded:
            return
        present = [getattr(owner, name) for owner, name in self._places]
        if not self._host:
            self._host = [_host_copy(tensor) for tensor in present]
        elif not self._frozen:
            for host, tensor in zip(self._host, present, strict=True):
                if host.data_ptr() != tensor.data_ptr():  # on a CPU it is the same memory
                    host.copy_(tensor)
        for (owner, name), tensor in zip(self._places, present, strict=True):
            setattr(owner, name, tensor.new_empty(0))
        self.offloaded = True

    def onload(self) -> None:
        """Move back to the device. When it is full, everything stays where it was and torch's own error is raised."""
        if not self.offloaded:
            return
        devices = [getattr(owner, name).device for owner, name in self._places]
        loaded = [host.to(device, non_blocking=True) for host, device in zip(self._host, devices, strict=True)]
        for (owner, name), tensor in zip(self._places, loaded, strict=True):
            setattr(owner, name, tensor)
        self.offloaded = False

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """On the device for a block; weights that are there already stay afterwards."""
        was_offloaded = self.offloaded
        self.onload()
        try:
            yield
        finally:
            if was_offloaded:
                self.offload()


def _places(tensor: Tensor) -> Iterator[tuple[Any, str]]:
    """Owner and attribute of each tensor to move. Those of a quantisation state are replaced, not emptied in place:
    bitsandbytes shares its code tables between layers."""
    yield tensor, "data"
    state = getattr(tensor, "quant_state", None)  # the layer holds the same object, so it sees the move too
    for part in (state, getattr(state, "state2", None)):
        for name in ("absmax", "code", "offset"):
            if isinstance(getattr(part, name, None), Tensor):
                yield part, name


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, from which a GPU reads fastest; on a CPU the tensor itself."""
    if tensor.device.type == "cpu":
        return tensor
    try:
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:  # the system limits how much may be pinned
        host = torch.empty_like(tensor, device="cpu")
    return host.copy_(tensor)
