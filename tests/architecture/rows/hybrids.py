"""Hybrids: some layers have no attention."""

TYPES: dict[str, dict[str, object]] = {}
