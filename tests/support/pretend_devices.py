"""Several devices on a machine that has none: tensors of the CPU that say they are elsewhere.

Inside `pretended_devices()`, a tensor made on or moved to `xpu:0` or `xpu:1` (which stand for two GPUs) is a
tensor of the CPU whose storage is noted to be there. `tensor.device` says so, and an operation on tensors of two
devices fails as it does on two GPUs. So whole models run, forward and backward, with their values.

torch's FakeTensorMode holds placement, too; but in a build without CUDA it can't index a tensor, nor
differentiate, and nothing that depends on a value can run in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("xpu:0"), torch.device("xpu:1")
aten = torch.ops.aten
ACROSS = {aten.copy_.default, aten.lift_fresh.default}
"""Operations that take tensors of other devices than their results are on."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operations that take indices of the CPU for tensors of any device."""


class _Places:
    """Where storages are: those of which nothing is noted are on the CPU."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[torch.device, Any]] = {}

    def of(self, tensor: torch.Tensor) -> torch.device:
        return self._of.get(tensor.untyped_storage()._cdata, (CPU, None))[0]

    def note(self, tensor: torch.Tensor, device: torch.device) -> None:
        storage = tensor.untyped_storage()  # kept, so that no other takes its address
        self._of[storage._cdata] = (device, storage)

    def is_noted(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._of


class _Operations(TorchDispatchMode):
    """Refuses operations across devices, and notes where results are."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places
        self.new = CPU  # where tensors are made that are made of none

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func in INDEXING:
            indices = [i for i in args[1] if i is not None and self.places.of(i) != CPU]
            given = [args[0], *indices, *(one for one in args[2:] if isinstance(one, torch.Tensor))]
        found = {self.places.of(tensor) for tensor in given if tensor.dim()} or {
            self.places.of(tensor) for tensor in given
        }
        if len(found) > 1 and func not in ACROSS:
            raise RuntimeError(f"{func}: expected all tensors on one device, found {sorted(map(str, found))}")
        made = func(*args, **(kwargs or {}))
        device = next(iter(found)) if found and func not in ACROSS else self.new
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and not self.places.is_noted(leaf):
                self.places.note(leaf, device)
        return made


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, device: torch.device, operations: _Operations
    ) -> torch.Tensor:
        ctx.back = (operations.places.of(tensor), operations)
        made = tensor.clone()
        operations.places.note(made, device)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        device, operations = ctx.back
        made = gradients[0].clone()
        operations.places.note(made, device)
        return made, None, None


class _Functions(TorchFunctionMode):
    """Takes the devices out of calls, and puts them into answers."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.operations.places.of(args[0])
        if func is torch.Tensor.cpu:
            return self._moved(args[0], CPU)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        device = kwargs.get("device")
        if device is None:
            return func(*args, **kwargs)
        before, self.operations.new = self.operations.new, torch.device(device)
        try:
            return func(*args, **{**kwargs, "device": CPU})
        finally:
            self.operations.new = before

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.pop("device", None)
        if args and isinstance(args[0], (str, torch.device, int)):
            device, *args = args  # type: ignore[assignment]
        elif args and isinstance(args[0], torch.Tensor):
            device, args = self.operations.places.of(args[0]), (args[0].dtype,)
        kwargs.pop("non_blocking", None)
        moved = tensor if device is None else self._moved(tensor, torch.device(device))
        dtypes = [one for one in (*args, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
        if not dtypes or dtypes[0] == moved.dtype:
            return moved
        return moved.type(dtypes[0])

    def _moved(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self.operations.places.of(tensor) == device:
            return tensor
        return _Move.apply(tensor, device, self.operations)  # type: ignore[no-any-return]


@contextlib.contextmanager
def pretended_devices() -> Iterator[None]:
    """Two devices beside the CPU, for what is made inside the block."""
    operations = _Operations(_Places())
    with operations, _Functions(operations):
        yield


class _Hook(AlignDevicesHook):
    """accelerate's, for weights that are in their places already: putting them there asks for the driver."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def spread(model: nn.Module, places: dict[str, torch.device]) -> None:
    """Put modules on devices, with the hooks that `accelerate.dispatch_model` would give them."""
    for name, device in places.items():
        module = model.get_submodule(name).to(device)
        add_hook_to_module(module, _Hook(device, skip_keys="past_key_values"))
    model.hf_device_map = places  # type: ignore[assignment]
    add_hook_to_module(model, _Hook(FIRST, io_same_device=True, skip_keys="past_key_values"))
