"""A GPU that is not there: tensors remember that they are on it, and take part in nothing with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda")


class PretendedGpu(TorchFunctionMode):
    """Computes on the CPU what is said to be on a GPU; operations on tensors of both fail, as `numpy` does.

    `operations` counts those on the GPU.
    """

    operations = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs `function`; marks its results when its operands, or the device asked for, are the GPU's."""
        options = dict(kwargs or {})
        operands = list(_tensors([args, options]))
        places = {_is_on_gpu(tensor) for tensor in operands if tensor.ndim or _is_on_gpu(tensor)}
        name = getattr(function, "__name__", str(function))
        if function == torch.Tensor.device.__get__:
            return GPU if _is_on_gpu(args[0]) else function(*args)
        if function == torch.Tensor.cpu:
            return args[0].clone()
        if len(places) > 1:
            raise RuntimeError(f"{name}: tensors on the CPU and on the GPU")
        if name in ("numpy", "__array__") and True in places:
            raise TypeError(f"{name}: the tensor is on the GPU")
        wanted = [value for value in (*args, *options.values()) if isinstance(value, torch.device)]
        on_gpu = GPU in wanted or True in places
        kept = [torch.device("cpu") if value == GPU else value for value in args]
        result = function(
            *kept, **{key: "cpu" if key == "device" else value for key, value in options.items()}
        )
        return self._marked(result.clone() if function == torch.Tensor.to else result) if on_gpu else result

    def _marked(self, result: Any) -> Any:
        self.operations += 1
        for tensor in _tensors(result):
            tensor.__dict__["on_gpu"] = True
        return result


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return "on_gpu" in tensor.__dict__


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


class AtOnce(Executor):
    """An executor that works in the caller's thread, where the mode holds."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result, there already."""
        future: Future[Any] = Future()
        future.set_result(work(*args, **kwargs))
        return future
