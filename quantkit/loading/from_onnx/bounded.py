"""No operation of a file takes more memory than a network may: a few bytes of a file could ask for any amount."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from quantkit.core.errors import ModelError
from quantkit.loading.from_onnx.operators.call import MOST_NUMBERS


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Asks each operation for the shapes of its results, without computing it, before it is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        most = max((_numbers(value) for value in pytree.tree_leaves(_shapes(func, args, kwargs))), default=0)
        if most > MOST_NUMBERS:
            got = f"the ONNX file has an operation, {func}, with a result of {most:,} numbers"
            raise ModelError(got, f"at most {MOST_NUMBERS:,}", "correct the file's shapes, or pass the torch model that it came from")
        return func(*args, **kwargs)


def _shapes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The results on torch's device without memory; nothing where their shapes hang on numbers, not on shapes."""
    given, named = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), {**kwargs}))
    try:
        return func(*given, **{**named, **({"device": "meta"} if "device" in named else {})})
    except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):  # what is wrong is said when it is computed
        return ()


def _numbers(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


@contextmanager
def bounded() -> Iterator[None]:
    """In the block, an operation whose result is of more than MOST_NUMBERS raises ModelError and is not computed."""
    with _Bounded():  # type: ignore[no-untyped-call]
        yield
