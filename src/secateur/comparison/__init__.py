"""Many runs under the same data, steps and budget, and their tables."""

__all__: list[str] = []
