"""What engines other than transformers need of a checkpoint, and how each is started with it."""

__all__: list[str] = []
