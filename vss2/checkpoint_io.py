"""Reading checkpoint files without executing them, and writing files whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from .d2.utils import PathManager, comm
from .errors import InputError, InputFileError

TRUST_HINT = "train.trust_checkpoint=true"

logger = getLogger(__name__)


def read_checkpoint(path: str | os.PathLike[str], trust: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, tensors on the CPU.

    A file in torch's archive format is checked against its checksums first, which torch does not.

    Args:
        path: a file of `torch.save`, a .safetensors file, a .pkl file of arrays as detectron2's
            model zoo has them, or a URL that the path manager fetches.
        trust: unpickle without restriction. That executes what the file says: only for files
            whose origin you trust.

    Raises:
        InputFileError: the file is missing, truncated or no checkpoint.
        InputError: it holds objects that a safe load refuses (they are listed).
    """
    local = local_path(path)
    if local.suffix == ".safetensors":
        return _read_safetensors(local)
    check_archive(local)
    if local.suffix == ".pkl" and not zipfile.is_zipfile(local):
        return _read_pickle(local, trust)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(local, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as e:
        unsafe = _unsafe_globals(local) or re.findall(r"GLOBAL ([\w.]+)", str(e))
        if not unsafe:
            raise _damaged(local, e) from e
        raise InputError(
            f"checkpoint {local} holds objects that could run code when loaded: "
            f"{', '.join(unsafe)}. If you trust its origin, set {TRUST_HINT}"
        ) from e
    except ImportError as e:
        raise InputError(f"checkpoint {local} needs a module that is missing: {e}") from e
    except Exception as e:  # a damaged file can fail in any part of the unpickler
        raise _damaged(local, e) from e
    if not isinstance(content, Mapping):
        raise InputError(f"checkpoint {local} holds a {type(content).__name__}, expected a dict")
    return dict(content) if type(content) is not OrderedDict else content


def read_on_all_ranks(
    path: str | os.PathLike[str],
    trust: bool = False,
    find: Callable[[], tuple[Path, dict[str, Any]] | None] | None = None,
) -> tuple[Path, dict[str, Any]] | None:
    """`read_checkpoint` for every rank of a run: all return the same, or raise the same error.

    Rank 0 reads while the others wait, which also fetches a URL once; then they read the same
    file. If one of them cannot, or sees other bytes under that name, rank 0 sends its content.

    Args:
        path, trust: see `read_checkpoint`.
        find: what rank 0 does instead of reading `path`; None from it is None on every rank.

    Returns:
        The local file and its content.
    """

    def read() -> tuple[Path, dict[str, Any]]:
        file = local_path(path)
        return file, read_checkpoint(file, trust)

    if comm.get_world_size() == 1:
        return (find or read)()
    found, error = None, None
    if comm.is_main_process():
        try:
            found = (find or read)()
        except InputError as e:
            error = e
    told = (error, found and (str(found[0]), _fingerprint(found[0])))
    error, source = comm.all_gather(told)[0]
    if error is not None:
        raise error
    if source is None:
        return None
    if not comm.is_main_process():
        found = _read_the_same(Path(source[0]), source[1], trust)
    if not all(comm.all_gather(found is not None)):
        found = _from_rank_0(found)
    return found


def _read_the_same(
    file: Path, fingerprint: tuple[int, int], trust: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The file that rank 0 has read, if this process sees it."""
    try:
        if _fingerprint(file) == fingerprint:
            return file, read_checkpoint(file, trust)
        logger.warning("%s has other content than on rank 0, which sends its own", file)
    except (OSError, InputError) as e:
        logger.warning("cannot read %s on this rank (%s); rank 0 sends it", file, first_line(e))
    return None


def _fingerprint(file: Path) -> tuple[int, int]:
    """Size, and a checksum over the two ends, where both formats keep sums or names of the rest."""
    size = file.stat().st_size
    with file.open("rb") as f:
        ends = f.read(2**16)
        f.seek(max(size - 2**16, 0))
        return size, zlib.crc32(ends + f.read())


def _from_rank_0(value: Any) -> Any:
    """What rank 0 holds, on every rank, without a detour over the devices."""
    import torch.distributed as dist

    group: Any = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
    box = [value if comm.is_main_process() else None]
    try:
        dist.broadcast_object_list(box, src=0, group=group)
    finally:
        if group is not None:
            dist.destroy_process_group(group)
    return box[0]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Context that every rank enters: an InputError on one of them is raised on all."""
    error = None
    try:
        yield
    except InputError as e:
        error = e
    errors = [e for e in comm.all_gather(error) if e is not None]
    if errors:
        raise errors[0]


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A temporary path whose content takes the place of `file` once it is safely on disk.

    Raises:
        InputFileError: the disk is full, the folder read-only, ...; `file` is as it was and the
            temporary file removed, where the folder permits that.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, file)
        sync(file.parent)
    except (OSError, RuntimeError) as e:  # torch wraps some errors of the disk
        reason = getattr(e, "strerror", None) or first_line(e)
        raise InputFileError(f"cannot write {file}: {reason}") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any, where: str) -> Any:
    """`value` in types that a safe load accepts.

    Raises:
        TypeError: something cannot be expressed so; names its place.
    """
    if isinstance(value, (DictConfig, ListConfig)):
        return plain(OmegaConf.to_container(value, resolve=True), where)
    if isinstance(value, OrderedDict) and all(isinstance(v, torch.Tensor) for v in value.values()):
        return value  # a module's state dict, whose version attributes must stay
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if value is None or isinstance(
        value, (torch.Tensor, bool, int, float, complex, str, bytes, torch.Size, torch.dtype)
    ):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def local_path(path: str | os.PathLike[str]) -> Path:
    """The file itself; a URL is fetched.

    Raises:
        InputFileError: there is no such file.
    """
    local = os.fspath(path)
    if "://" in local:
        try:
            local = PathManager.get_local_path(local)
        except Exception as e:  # whatever the transport raises, the user needs the URL
            raise InputFileError(f"cannot fetch checkpoint {path}: {first_line(e)}") from e
    file = Path(local).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputFileError(f"checkpoint {file} {what}; expected a file")
    return file


def check_archive(path: Path, required: bool = False) -> None:
    """Compare a file in torch's archive format with its checksums.

    A file whose end is missing has no list of its parts, and one with changed bytes has a part
    that does not match its sum.

    Args:
        path: a file.
        required: refuse a file of another format, instead of letting it pass.

    Raises:
        InputFileError: the file is damaged.
    """
    with path.open("rb") as f:
        if f.read(4) != b"PK\x03\x04":
            if required:
                raise _damaged(path, ValueError("it does not begin as one"))
            return
    try:
        with zipfile.ZipFile(path) as archive:
            # torch can leave the sums out, which makes all of them zero.
            has_sums = any(part.CRC for part in archive.infolist())
            changed = archive.testzip() if has_sums else None
    except Exception as e:  # a damaged list of parts can fail in any way
        raise _damaged(path, e) from e
    if changed is not None:
        raise _damaged(path, ValueError(f"the bytes of its part {changed} have changed"))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise _damaged(path, e) from e


class _ArrayUnpickler(pickle.Unpickler):
    """Restores containers, strings, numbers and NumPy arrays, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {g[1]: g[0] for g in _numpy_globals() if isinstance(g, tuple)}
        known |= {f"numpy.{kind.__name__}": kind for kind in (np.ndarray, np.dtype)}
        known["collections.OrderedDict"] = OrderedDict
        known["_codecs.encode"] = codecs.encode  # bytes, as Python 2 and protocol 2 wrote them
        if f"{module}.{name}" not in known:
            raise InputError(f"{module}.{name}")
        return known[f"{module}.{name}"]


def _read_pickle(path: Path, trust: bool) -> dict[str, Any]:
    kind = pickle.Unpickler if trust else _ArrayUnpickler
    try:
        with path.open("rb") as f:
            content = kind(f, encoding="latin1").load()
    except InputError as e:
        raise InputError(
            f"checkpoint {path} holds objects that could run code when loaded: {e}. If you trust "
            f"its origin, set {TRUST_HINT}"
        ) from e
    except Exception as e:  # a damaged file can fail in any part of the unpickler
        raise _damaged(path, e) from e
    if not isinstance(content, Mapping):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, expected a dict")
    return dict(content)


def _damaged(path: Path, error: Exception) -> InputFileError:
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return InputFileError(
        f"{path} ({path.stat().st_size} bytes) is truncated or no checkpoint: "
        f"{reason.splitlines()[0]}"
    )


def _numpy_globals() -> list[Any]:
    """What numpy scalars and arrays are pickled as, under NumPy 1 and 2; none of it runs code."""
    rebuild = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.zeros(0).__reduce__()[0],
    }
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(f, f"{module}.{name}") for module in modules for name, f in rebuild.items()]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return [*named, np.ndarray, np.dtype, *kinds]


def _unsafe_globals(path: Path) -> list[str]:
    """Names in the file that a safe load refuses; [] where they cannot be listed."""
    allowed = {g[1] if isinstance(g, tuple) else f"{g.__module__}.{g.__qualname__}"
               for g in _numpy_globals()}  # fmt: skip
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only files in the zip format can be listed
        return []
    return sorted(set(found) - allowed)


def few(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
