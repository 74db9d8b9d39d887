"""What a run would take, before anything is spent: units, sizes, memory, FLOPs, time."""

__all__: list[str] = []
