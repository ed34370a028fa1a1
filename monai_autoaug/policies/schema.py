# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The JSON schema of ``policy.json``."""

from __future__ import annotations

from typing import Any

__all__ = ["FORMAT", "SCHEMA", "VERSION"]

FORMAT, VERSION = "monai_autoaug.policy", 1

_NAME = {"type": "string", "minLength": 1, "maxLength": 200}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_RANGE = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object", "properties": required | (optional or {}), "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


def _by_class(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value, "minProperties": 1}


def _list(items: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


_PAIR = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
_LATERALITY = {
    "anyOf": [
        {"type": "null"},
        _object({"pairs": _list(_PAIR), "axis": {"enum": [0, 1, 2]}, "mirrors": {"enum": ["swap", "off"]}}),
    ]
}
_EVIDENCE = _object({"advantage": {"type": "number"}, "standard_error": {"type": "number", "minimum": 0}})
_OPERATION = _object(
    {"name": _NAME, "probability": _by_class(_PROBABILITY), "logit": _by_class({"type": "number"})},
    {
        "range": _RANGE, "unit": {"type": "string"}, "opposite": {"enum": ["none", "negative", "reciprocal"]},
        "start": _by_class(_PROBABILITY), "evidence": _by_class(_EVIDENCE),
    },
)  # fmt: skip
_TRAINING = _object(
    {
        "spatial_dims": {"enum": [2, 3]},
        "classes": _list(_NAME),
        "temperature": {"type": "number", "exclusiveMinimum": 0},
        "floor": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "laterality": _LATERALITY,
        "cascades": _list(_object({"name": _NAME, "operations": _list(_OPERATION, 2)})),
    }
)
_VIEW = _object(
    {"name": _NAME, "probability": _PROBABILITY, "logit": {"type": "number"}},
    {"magnitude": {"type": "number"}, "unit": {"type": "string"}},
)
_TEST_TIME = _object(
    {
        "spatial_dims": {"enum": [2, 3]},
        "level": {"enum": ["volume", "patch"]},
        "average": {"enum": ["logits", "probabilities"]},
        "regions": {"type": "boolean"},
        "views_averaged": {"type": "integer", "minimum": 1},
        "laterality": _LATERALITY,
        "views": _list(_VIEW),
    }
)
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Learned augmentation policies",
    **_object(
        {
            "format": {"const": FORMAT},
            "version": {"const": VERSION},
            "provenance": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
        },
        {"training": _TRAINING, "test_time": _TEST_TIME},
    ),
    "anyOf": [{"required": ["training"]}, {"required": ["test_time"]}],
}
