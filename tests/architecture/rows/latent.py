"""Latent attention: keys and values of low rank."""

TYPES: dict[str, dict[str, object]] = {}
