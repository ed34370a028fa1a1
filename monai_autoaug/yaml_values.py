# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Values from YAML text as people mean them."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["parse"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but ``1e-3`` is a number (to YAML 1.1, and so to PyYAML, it is a word)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The content of YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, or asks for Python objects.

    >>> parse("{rate: 1e-3, channels: [8, 16], name: 1e}")
    {'rate': 0.001, 'channels': [8, 16], 'name': '1e'}
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # a subclass of the safe loader
