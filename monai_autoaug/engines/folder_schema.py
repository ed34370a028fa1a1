# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""JSON schemas of a run's files: what is read from them later has to be there, whoever has edited them since."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMAS"]

_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number"}


def _sizes(least: int) -> dict[str, Any]:
    """Voxels of three axes."""
    return {
        "type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "integer", "minimum": least, "maximum": 4096}
    }  # fmt: skip


_CONFIG: dict[str, Any] = {
    "type": "object",
    "required": ["options", "patch_size", "margin", "split"],
    "properties": {
        "options": {
            "type": "object",
            "required": ["data", "method", "method_options"],
            "properties": {
                "data": {"type": "string"},
                "method": {"type": "string"},
                "method_options": {"type": "object"},
                "network_options": {"type": "object"},
            },
        },
        "patch_size": _sizes(1),
        "margin": _sizes(0),
        "split": {
            "type": "object",
            "required": ["train", "validation"],
            "properties": {"train": _NAMES, "meta": _NAMES, "validation": _NAMES},
            "additionalProperties": False,
        },
        "unlabelled": _NAMES,
    },
}
_SUMMARY: dict[str, Any] = {
    "type": "object",
    "required": [
        "method", "iterations", "parameters", "device", "seconds", "cpu_seconds", "warnings", "cases",
        "validation_on_preprocessed_grid",
    ],
    "properties": {
        "method": {"type": "string"},
        "iterations": _COUNT,
        "parameters": _COUNT,
        "device": {"type": "string"},
        "seconds": _NUMBER,
        "cpu_seconds": _NUMBER,
        "warnings": _NAMES,
        "no_ops": _NAMES,
        "cases": {"type": "object", "required": ["train", "validation"], "additionalProperties": _COUNT},
        "validation_on_preprocessed_grid": {
            "type": "object", "required": ["dice"], "additionalProperties": {"type": ["number", "null"]},
        },
    },
}  # fmt: skip
_AUDIT: dict[str, Any] = {
    "type": "object",
    "required": ["counts"],
    "properties": {"counts": {"type": "object", "required": ["warn"], "additionalProperties": _COUNT}},
}
_FILES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["bytes", "blake2b"],
            "properties": {"bytes": _COUNT, "blake2b": {"type": "string"}},
        },
    },
}
_FINGERPRINTS: dict[str, Any] = {
    "type": "object",
    "required": ["version", "cases", "unlabelled"],
    "properties": {"version": {"const": 1}, "cases": _FILES, "unlabelled": _FILES},
}

# file name -> schema
SCHEMAS: dict[str, dict[str, Any]] = {
    "config.json": _CONFIG, "summary.json": _SUMMARY, "audit.json": _AUDIT, "fingerprints.json": _FINGERPRINTS,
}  # fmt: skip
