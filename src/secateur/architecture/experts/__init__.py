"""Mixtures of experts: their experts apart for training and in one tensor again, whole ones removed, LoRA on them; and
blocks that layers share, made one."""

from .apart import ROWS, Expert, ExpertList, expert_lists, expert_names, unstack_experts
from .dropping import (
    LEAST_TOKENS,
    ROUTING_BATCHES,
    Dropped,
    check_expert_count,
    check_experts_by,
    choosing_rule,
    chosen_of,
    drop_experts,
    gone_record,
    take_out_experts,
    unused_experts,
)
from .shared import find, is_shared, repeated, share_, tied_linears
from .stacked import stack_experts

__all__ = [
    "LEAST_TOKENS",
    "ROUTING_BATCHES",
    "ROWS",
    "Dropped",
    "Expert",
    "ExpertList",
    "check_expert_count",
    "check_experts_by",
    "choosing_rule",
    "chosen_of",
    "drop_experts",
    "expert_lists",
    "expert_names",
    "find",
    "gone_record",
    "is_shared",
    "repeated",
    "share_",
    "stack_experts",
    "take_out_experts",
    "tied_linears",
    "unstack_experts",
    "unused_experts",
]
