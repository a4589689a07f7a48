"""Process-wide catalogs: name -> function that lists a data set, name -> metadata of that set."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _DatasetCatalog(UserDict):
    """Maps a data set's name to a function that returns its list of dicts.

    The function is called at every `get`, so it must give the same list each time.
    """

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Remember `func` under `name`; `AssertionError` if not callable or the name is taken."""
        assert callable(func), f"The data set '{name}' needs a function that lists it, not {func!r}"
        assert name not in self, f"The data set '{name}' is registered already"
        self[name] = func

    def get(self, name: str) -> list[dict]:  # type: ignore[override]
        """Call the function of `name`; `KeyError` that lists the known names otherwise."""
        if name not in self:
            known = ", ".join(self) or "(none)"
            raise KeyError(f"No data set '{name}' is registered. Registered are: {known}")
        return self[name]()

    def list(self) -> list[str]:
        """Names of all registered data sets, in order of registration."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget `name`; `KeyError` if it is unknown."""
        del self[name]

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __repr__ = __str__


class Metadata(SimpleNamespace):
    """Attributes of a data set that may be set once: a different value is an `AssertionError`.

    Values are compared with `==`, so store lists or tuples, not arrays.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        # Reached only when ordinary look-up failed.
        known = ", ".join(vars(self)) or "(none)"
        raise AttributeError(
            f"The metadata of '{self.name}' has no attribute '{key}'. It has: {known}"
        )

    def __setattr__(self, key: str, val: Any) -> None:
        attributes = vars(self)
        if key in attributes:
            old = attributes[key]
            assert old == val, (
                f"'{key}' of the metadata of '{self.name}' cannot be set to a different value: "
                f"it is {old!r}, not {val!r}"
            )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all attributes."""
        return dict(vars(self))

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes; returns the object itself, so that calls can be chained."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` where there is none."""
        return vars(self).get(key, default)


class _MetadataCatalog(UserDict):
    """Maps a name to its one `Metadata` object of this process."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of `name`, made empty at the first call."""
        assert name, "The name of a dataset's metadata must not be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Names that have metadata."""
        return [*self]

    def remove(self, name: str) -> None:
        """Forget `name`; `KeyError` if it is unknown."""
        del self[name]

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
