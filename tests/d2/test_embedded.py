"""What the embedded subset does beyond the contract: served imports and mended defects.

The subset can be imported by its private path on either backend, so these tests always run.
"""

from __future__ import annotations

import builtins
import os
import pickle
import sys
import textwrap
import threading

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError
from torch import nn

import vss2.d2
from vss2.d2._embedded.checkpoint import DetectionCheckpointer
from vss2.d2._embedded.config import LazyConfig

needs_embedded = pytest.mark.skipif(
    vss2.d2.BACKEND != "embedded", reason="with a detectron2, configs import detectron2 itself"
)


def write(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


@needs_embedded
@pytest.mark.parametrize(
    "lines",
    [
        "from detectron2.config import LazyCall as L\nfrom detectron2.solver import LRMultiplier",
        (
            "import detectron2.config as c\nL = c.LazyCall\nimport detectron2.solver\n"
            "LRMultiplier = detectron2.solver.LRMultiplier"
        ),
        (
            "from detectron2.config.lazy import LazyCall as L\n"
            "import detectron2.solver.lr_scheduler\n"
            "LRMultiplier = detectron2.solver.lr_scheduler.LRMultiplier"
        ),
        (
            "from detectron2 import config, solver\nL = config.LazyCall\n"
            "LRMultiplier = solver.LRMultiplier"
        ),
        "from detectron2.config import *\nfrom detectron2.solver import *\nL = LazyCall",
    ],
)
def test_configs_may_import_detectron2(tmp_path, lines):
    text = f"{lines}\nschedule = L(LRMultiplier)(max_iter=4)\n"
    path = write(tmp_path, "a.py", text)
    assert LazyConfig.load(path).schedule._target_ is vss2.d2.solver.LRMultiplier
    assert not any(name.partition(".")[0] == "detectron2" for name in sys.modules)


@needs_embedded
def test_served_modules_are_the_doors(tmp_path):
    path = write(
        tmp_path,
        "a.py",
        """
        from detectron2.utils import comm
        from detectron2.utils.comm import get_rank
        from detectron2.engine import hooks
        from detectron2.engine.hooks import EvalHook
        """,
    )
    comm, get_rank, hooks, hook = LazyConfig.load(path, ("comm", "get_rank", "hooks", "EvalHook"))
    assert comm is vss2.d2.utils.comm
    assert get_rank is comm.get_rank
    assert hooks is vss2.d2.engine.hooks
    assert hook is hooks.EvalHook


@needs_embedded
def test_imports_are_served_in_relative_files_too(tmp_path):
    write(tmp_path, "base.py", "from detectron2.config import LazyCall as L\nx = L(list)()")
    assert LazyConfig.load(write(tmp_path, "a.py", "from .base import x")).x._target_ is list


@needs_embedded
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from detectron2 import model_zoo", "detectron2.model_zoo"),
        ("from detectron2.model_zoo import get_config", "detectron2.model_zoo"),
        ("import detectron2.projects.point_rend", "detectron2.projects.point_rend"),
        ("from detectron2.modeling import ResNet", "detectron2.modeling.ResNet"),
        ("from detectron2.modeling.backbone import ResNet", "detectron2.modeling.backbone.ResNet"),
        ("from detectron2.utils.comm import no_such_function", "no_such_function"),
    ],
)
def test_what_the_door_lacks_is_an_import_error_that_says_so(tmp_path, line, name):
    with pytest.raises(ImportError, match=name):
        LazyConfig.load(write(tmp_path, "a.py", line))


@needs_embedded
def test_unknown_attributes_of_served_modules(tmp_path):
    text = "import detectron2.modeling\nx = dict(a=detectron2.modeling.ResNet)"
    with pytest.raises(AttributeError, match=r"detectron2\.modeling\.ResNet"):
        LazyConfig.load(write(tmp_path, "a.py", text))


@needs_embedded
def test_nothing_outside_a_config_file_sees_detectron2(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, "vss2_outside.py", "import detectron2.config")
    with pytest.raises(ImportError):
        LazyConfig.load(write(tmp_path, "a.py", "import vss2_outside"))
    later = LazyConfig.load(
        write(tmp_path, "b.py", "def later():\n    import detectron2.config"), "later"
    )
    with pytest.raises(ImportError):
        later()


def test_import_is_restored_after_a_config_that_fails(tmp_path):
    before = builtins.__import__
    for text in ("x = 1 / 0", "from .absent import y", "x = = 1", "raise KeyboardInterrupt"):
        with pytest.raises((ZeroDivisionError, ImportError, SyntaxError, KeyboardInterrupt)):
            LazyConfig.load(write(tmp_path, "a.py", text))
        assert builtins.__import__ is before


def test_threads_load_one_after_the_other(tmp_path):
    before = builtins.__import__
    write(tmp_path, "base.py", "import time\ntime.sleep(0.01)\nx = dict(a=1)")
    path = write(tmp_path, "a.py", "from .base import x\nx.a += 1")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(LazyConfig.load(path).x.a)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2, 2, 2, 2]
    assert builtins.__import__ is before


def test_sweeps_are_refused_by_configs_that_hold_objects_too():
    cfg = OmegaConf.create({"x": 1}, flags={"allow_objects": True})
    with pytest.raises(ValidationError, match="x=range"):
        LazyConfig.apply_overrides(cfg, ["x=range(1,3)"])
    assert cfg.x == 1


def test_a_config_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OSError):
        LazyConfig.save(OmegaConf.create({"x": 1}), str(tmp_path / "absent" / "config.yaml"))


def test_saving_skips_what_has_no_value_yet(tmp_path):
    cfg = OmegaConf.create({"x": "???", "y": "${nowhere}", "z": None, "l": [None, "???"]})
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    assert OmegaConf.to_container(LazyConfig.load(path), resolve=False) == {
        "x": "???",
        "y": "${nowhere}",
        "z": None,
        "l": [None, "???"],
    }


def test_a_checkpointer_survives_a_failed_load(tmp_path):
    net = nn.Linear(2, 2)
    checkpointer = DetectionCheckpointer(net, str(tmp_path))
    checkpointer.save("good")
    torch.save({"state_dict": {}}, tmp_path / "bad.pth")
    for path in ("absent.pth", "bad.pth"):
        with pytest.raises((AssertionError, ValueError)):
            checkpointer.load(str(tmp_path / path))
    nn.init.zeros_(net.weight)
    checkpointer.load(str(tmp_path / "good.pth"))
    assert float(net.weight.detach().abs().sum()) > 0


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_pickles_of_the_model_zoo_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"weight": Harmful()}, "__author__": "someone"}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pkl"))
    assert not (tmp_path / "harm").exists()


def test_caffe2_weights_are_refused(tmp_path):
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": {}}))
    with pytest.raises(NotImplementedError, match=r"caffe2\.pkl"):
        DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "caffe2.pkl"))
