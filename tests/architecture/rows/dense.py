"""Decoders with one FFN a layer."""

TYPES: dict[str, dict[str, object]] = {}
