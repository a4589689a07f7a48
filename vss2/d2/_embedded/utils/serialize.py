"""Pickling of what pickle alone refuses: lambdas and local functions."""

from __future__ import annotations

from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Behaves as the wrapped object, and pickles through cloudpickle.

    A process that unpickles it gets the wrapped object itself.
    """

    _obj: Any

    def __init__(self, obj: Any) -> None:
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # "_obj" is absent only while an instance is being built without __init__.
        if name == "_obj":
            raise AttributeError(name)
        return getattr(self._obj, name)
