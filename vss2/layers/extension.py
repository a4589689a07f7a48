"""C++ and CUDA sources of vss2, compiled at first use and loaded through `ctypes`.

A source exports `extern "C"` functions that take pointers and sizes, and includes no header of
PyTorch or Python. It therefore compiles in seconds, needs nothing but a compiler, and outlives an
upgrade of PyTorch. Callers pass `tensor.data_ptr()` of contiguous tensors and register their op
with `torch.library` in Python.

A library is looked for under its key (sources, flags, processor) in `csrc/build/` of this package,
where `VSS2_BUILD_EXT=1 pip install -e .` puts it, and then in the cache folder, which is
`VSS2_EXTENSIONS`, or `vss2/extensions` in `XDG_CACHE_HOME` or in `~/.cache`. If it is in neither,
it is compiled into the cache folder. This module imports the standard library only, so that
`setup.py` can use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: builds may then be done twice, and the last one stays
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CSRC = Path(__file__).resolve().parent / "csrc"
PREBUILT = CSRC / "build"


class BuildError(RuntimeError):
    """A library cannot be built here; the message says why."""


def load_cpu_extension(name: str, sources: Sequence[Path]) -> ctypes.CDLL | None:
    """The library `name` made of C++ `sources`, compiled at first use; None where it cannot be.

    Calls through `ctypes` release the interpreter's lock. OpenMP is on where the compiler has it;
    pass `torch.get_num_threads()` to the library for a `num_threads` clause. The caller declares
    `argtypes` and `restype` of each function (pointers as `ctypes.c_void_p`).

    The first call in a process logs one line: where the library is, or why there is none
    (`missing_reason` returns that sentence, for the error of a user who asked for this library).
    """
    return _load(name, tuple(sources), None)[0]


def load_cuda_extension(
    name: str, sources: Sequence[Path], arch: tuple[int, int]
) -> ctypes.CDLL | None:
    """As `load_cpu_extension`, with `nvcc`, for devices of compute capability `arch`."""
    return _load(name, tuple(sources), arch)[0]


def missing_reason(
    name: str, sources: Sequence[Path], arch: tuple[int, int] | None = None
) -> str | None:
    """Why `load_*_extension` with the same arguments gives None; None if it gives a library."""
    return _load(name, tuple(sources), arch)[1]


@functools.cache
def _load(
    name: str, sources: tuple[Path, ...], arch: tuple[int, int] | None
) -> tuple[ctypes.CDLL | None, str | None]:
    try:
        file = built_library(name, sources, arch)
        library = ctypes.CDLL(str(file))
    except (BuildError, OSError) as error:
        logger.warning("extension %s is not available: %s", name, error)
        return None, str(error)
    logger.info("extension %s: %s", name, file)
    return library, None


def built_library(
    name: str, sources: Sequence[Path], arch: tuple[int, int] | None, folder: Path | None = None
) -> Path:
    """File of the library, found or compiled; into `folder`, default the cache folder.

    Raises `BuildError` if there is no compiler, if it fails, or if the folder cannot be written.
    Processes that ask at the same time wait for the one that compiles.
    """
    flags = _cpu_flags() if arch is None else _cuda_flags(arch)
    file = f"{name}-{_key(sources, flags, arch is None)}.so"
    if (PREBUILT / file).exists():
        return PREBUILT / file
    folder = cache_folder() if folder is None else folder
    if (folder / file).exists():
        return folder / file
    compiler = _cpp_compiler() if arch is None else _nvcc()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{name}.lock"):
            if not (folder / file).exists():
                _compile([compiler, *flags, *map(str, sources)], folder / file)
    except OSError as error:
        raise BuildError(f"the folder {folder} cannot be written ({error})") from error
    return folder / file


def build_ahead() -> list[Path]:
    """Compile every `csrc/*.cpp` and, where there is nvcc, every `csrc/*.cu` into `csrc/build/`.

    Each source makes the library of its name. The environment variable TORCH_CUDA_ARCH_LIST says
    for which GPUs, default "8.0;9.0". Raises `BuildError`.
    """
    files = [built_library(f.stem, [f], None, PREBUILT) for f in sorted(CSRC.glob("*.cpp"))]
    try:
        _nvcc()
    except BuildError as error:
        logger.warning("nothing is built for GPUs: %s", error)
        return files
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0"
    for arch in re.findall(r"(\d+)\.(\d+)", listed):
        code = (int(arch[0]), int(arch[1]))
        files += [built_library(f.stem, [f], code, PREBUILT) for f in sorted(CSRC.glob("*.cu"))]
    return files


def cache_folder() -> Path:
    """Where libraries that are compiled at first use are kept."""
    if os.environ.get("VSS2_EXTENSIONS"):
        return Path(os.environ["VSS2_EXTENSIONS"]).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "vss2" / "extensions"


def _compile(command: list[str], file: Path) -> None:
    logger.info("compiling %s, once", file.name)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        part = Path(scratch) / file.name
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
        os.replace(part, file)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Only one process at a time; the system releases the lock of a process that dies."""
    with file.open("w") as handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _cpp_compiler() -> str:
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise BuildError(f"there is no C++ compiler (looked for {', '.join(wanted)})")
    return found


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    wanted = ([f"{home}/bin/nvcc"] if home else []) + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise BuildError(f"there is no CUDA compiler (looked for {', '.join(wanted)})")
    return found


def _cpu_flags() -> list[str]:
    """No flag that changes what NaN and infinity do."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    math = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    return ["-std=c++17", "-O3", native, *math, *openmp, "-shared", "-fPIC"]


def _cuda_flags(arch: tuple[int, int]) -> list[str]:
    code = f"{arch[0]}{arch[1]}"
    target = ["-gencode", f"arch=compute_{code},code=sm_{code}"]
    return ["-std=c++17", "-O3", *target, "-shared", "-Xcompiler", "-fPIC"]


def _key(sources: Sequence[Path], flags: Sequence[str], native: bool) -> str:
    parts = [" ".join(flags), platform.machine(), _instruction_sets() if native else ""]
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _instruction_sets() -> str:
    """What `-march=native` depends on: another processor with the same home needs its own file."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = ("flags", "Features", "model name", "CPU part")
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
