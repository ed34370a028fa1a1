# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Values from YAML text as people mean them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

__all__ = ["parse"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but ``1e-3`` is a number (to YAML 1.1, and so to PyYAML, it is a word).

    An alias (``*name``), with which a few lines can stand for billions of values, and a key that is given twice, of
    which one would be lost, are refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = sorted(key for key, count in counts.items() if count > 1)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The content of YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, asks for Python objects, holds aliases, a key twice, or a date or number that
            can't be.

    >>> parse("{rate: 1e-3, channels: [8, 16], name: 1e}")
    {'rate': 0.001, 'channels': [8, 16], 'name': '1e'}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a subclass of the safe loader
    except (ValueError, OverflowError) as error:  # such as a date of a 13th month
        raise yaml.YAMLError(f"it holds a value that can't be: {error}") from error
    except RecursionError:
        raise yaml.YAMLError("it has very many levels") from None
