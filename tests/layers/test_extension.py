"""Compiling and finding the libraries of C++ and CUDA sources."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

from vss2.layers import extension
from vss2.layers.extension import BuildError, built_library, load_cpu_extension, missing_reason

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSS2_EXTENSIONS", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    extension._load.cache_clear()


def source(folder: Path, answer: int) -> Path:
    file = folder / "answer.cpp"
    file.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')
    return file


@needs_compiler
def test_compiled_once_and_again_when_the_source_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=extension.__name__):
        for _ in range(2):
            library = load_cpu_extension("answer", [source(tmp_path, 42)])
            assert library is not None
            assert library.answer() == 42
    assert caplog.text.count("compiling answer-") == 1
    assert missing_reason("answer", [tmp_path / "answer.cpp"]) is None
    first = built_library("answer", [source(tmp_path, 42)], None)
    second = built_library("answer", [source(tmp_path, 43)], None)
    assert first != second
    assert ctypes.CDLL(str(second)).answer() == 43
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".so", ".lock"}


def test_a_library_built_ahead_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = source(tmp_path, 1)
    monkeypatch.setattr(extension, "PREBUILT", tmp_path)
    ahead = tmp_path / f"answer-{extension._key([file], extension._cpu_flags(), True)}.so"
    ahead.write_bytes(b"")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert built_library("answer", [file], None) == ahead


def test_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    file = source(tmp_path, 2)
    for _ in range(3):
        assert load_cpu_extension("answer", [file]) is None
    assert len(caplog.records) == 1
    assert "there is no C++ compiler (looked for no-such-compiler)" in caplog.text
    assert "no-such-compiler" in str(missing_reason("answer", [file]))


@needs_compiler
def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    file = tmp_path / "wrong.cpp"
    file.write_text("int wrong( { nonsense }\n")
    with pytest.raises(BuildError, match=r"wrong\.cpp.* failed: .*error"):
        built_library("wrong", [file], None)
    assert not list((tmp_path / "cache").glob("*.so"))
    assert load_cpu_extension("wrong", [file]) is None


@needs_compiler
def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VSS2_EXTENSIONS", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="cannot be written"):
        built_library("answer", [source(tmp_path, 3)], None)


def hold(lock: Path, seconds: float, held: object) -> None:
    with extension._lock(lock):
        held.set()  # type: ignore[attr-defined]
        time.sleep(seconds)
        lock.with_name("compiled").touch()


@pytest.mark.skipif(extension.fcntl is None, reason="no file locks on this system")
def test_one_process_compiles_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "x.lock", 0.3, held))
    other.start()
    assert held.wait(20)
    with extension._lock(tmp_path / "x.lock"):
        assert (tmp_path / "compiled").exists()
    other.join(20)
    assert other.exitcode == 0


@needs_compiler
def test_built_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "CSRC", tmp_path)
    monkeypatch.setattr(extension, "PREBUILT", tmp_path / "build")
    monkeypatch.setattr(extension, "_nvcc", no_nvcc)
    file = source(tmp_path, 7)
    (built,) = extension.build_ahead()
    assert built.parent == tmp_path / "build"
    assert built_library("answer", [file], None) == built
    library = load_cpu_extension("answer", [file])
    assert library is not None
    assert library.answer() == 7
    assert not (tmp_path / "cache").exists()


def no_nvcc() -> str:
    raise BuildError("there is no CUDA compiler")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert extension.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("VSS2_EXTENSIONS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert extension.cache_folder() == tmp_path / "xdg" / "vss2" / "extensions"
