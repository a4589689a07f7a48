from __future__ import annotations

import subprocess
import sys

import pytest

import vss2
from vss2.errors import InputError


def test_env_report_names_versions_backend_and_hardware() -> None:
    report = vss2.env_report()
    for word in (vss2.__version__, "backend", "torch", "cpu", "gpu"):
        assert word in report


def test_import_is_light() -> None:
    code = "import sys, vss2; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_score_vss_is_reached_from_the_package() -> None:
    code = "import vss2; print(vss2.evaluation.score_vss.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "score_vss"


def test_unknown_config_gets_close_matches() -> None:
    with pytest.raises(InputError, match="segformer_mit_b0_vspw"):
        vss2.load("segformer/segformer_mit_b0_vspv")


def test_unknown_override_gets_close_matches() -> None:
    with pytest.raises(InputError, match="num_classes"):
        vss2.load("segformer/segformer_toy", overrides=["model.num_clases=3"])


def test_load_without_weights_gives_the_initial_model() -> None:
    model = vss2.load("segformer/segformer_toy", device="cpu")
    assert model.cfg.model.num_classes == model.num_classes == 12
    assert not model.training
