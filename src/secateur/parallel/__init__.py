"""Several processes as one: averages and agreement, and a frozen base that is sharded over them."""

from .distributed import DisagreementError, average_gradients_, share_counts
from .sharding import shard_base

__all__ = ["DisagreementError", "average_gradients_", "shard_base", "share_counts"]
