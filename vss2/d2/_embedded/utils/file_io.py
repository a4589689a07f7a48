"""The path manager of the project: local paths, `http(s)://` and `detectron2://`."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]


class _ModelZooHandler(PathHandler):
    """`detectron2://...`: files of detectron2's model zoo, downloaded once and cached."""

    PREFIX = "detectron2://"
    URL = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return self.URL + path[len(self.PREFIX) :]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return PathManager.get_local_path(self._url(path), force=force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._url(path), mode, buffering, **kwargs)


PathManager = PathManagerBase()
PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(_ModelZooHandler())
