"""Metadata and the package mapping: `projects/<name>` installs as `vss2.projects.<name>`."""

import importlib.util
import os
import re
from pathlib import Path

from setuptools import Distribution, find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "vss2/__init__.py").read_text())[1]


def project_packages() -> dict[str, str]:
    """Package name -> folder of every project and its sub-packages, without their tests."""
    packages = {}
    for init in sorted((ROOT / "projects").glob("*/__init__.py")):
        name, folder = f"vss2.projects.{init.parent.name}", f"projects/{init.parent.name}"
        packages[name] = folder
        for sub in find_packages(folder, exclude=["tests", "tests.*", "*.tests", "*.tests.*"]):
            packages[f"{name}.{sub}"] = f"{folder}/{sub.replace('.', '/')}"
    return packages


def build_extensions() -> None:
    """Compile the C++ and CUDA sources into `vss2/layers/csrc/build`; without importing vss2."""
    file = ROOT / "vss2/layers/extension.py"
    spec = importlib.util.spec_from_file_location("vss2_extension", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build_ahead()


class CompiledDistribution(Distribution):
    """A wheel that holds compiled libraries fits one platform only."""

    def has_ext_modules(self) -> bool:
        return True


PROJECTS = project_packages()
COMPILED = os.environ.get("VSS2_BUILD_EXT") == "1"
if COMPILED:
    build_extensions()

setup(
    name="vss2",
    version=VERSION,
    description="Video segmentation methods side by side on one plugin-based framework",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["vss2", "vss2.*"]), "vss2.configs", *PROJECTS],
    package_dir={"vss2.configs": "configs", **PROJECTS},
    distclass=CompiledDistribution if COMPILED else Distribution,
    package_data={
        "vss2.layers": [
            "csrc/*.cpp",
            "csrc/*.cu",
            *(["csrc/build/*.so"] if COMPILED else []),
        ],
        "vss2.configs": ["**/*.py"],
        **{name: ["configs/**/*.py"] for name in PROJECTS if name.count(".") == 2},
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "omegaconf>=2.3,<2.4",
        "hydra-core>=1.3,<1.4",
        "cloudpickle>=2.2",
        "numpy>=1.24",
        "pillow>=10.0",
        "pyyaml>=6.0",
        "opencv-python-headless>=4.8",
        "pycocotools>=2.0.7",
        "safetensors>=0.4",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "tabulate>=0.9",
        "termcolor>=2.3",
        "tensorboard>=2.14",
        "tqdm>=4.66",
        "av>=12.0",
    ],
    extras_require={
        "dev": [
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "mypy>=1.10",
            "setuptools>=70.1",  # builds wheels in the tests
            "types-PyYAML",
            "types-tabulate",
        ],
        # An independent implementation of Mask2Former to compare with.
        "test": ["pytest>=8.0", "pytest-xdist>=3.5", "transformers>=5.0"],
    },
    entry_points={
        "console_scripts": ["vss2=vss2.cli.main:main"],
        "vss2.projects": [
            f"{name.rsplit('.', 1)[1]}={name}" for name in PROJECTS if name.count(".") == 2
        ],
    },
)
