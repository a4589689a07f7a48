"""Methods as plug-ins: `projects/<name>` of the checkout imports as `vss2.projects.<name>`.

An install maps the folders here. In a bare checkout this package looks into the checkout's
`projects` folder, but only beside the checkout's own pyproject.toml: a foreign folder of that name
in site-packages is none of ours.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "projects").is_dir():
    __path__.append(str(_ROOT / "projects"))
