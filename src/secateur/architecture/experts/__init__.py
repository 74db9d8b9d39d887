"""Mixtures of experts: their experts apart for training and in one tensor again, whole ones removed, LoRA on them."""

from .apart import ROWS, Expert, ExpertList, expert_lists, expert_names, find, unstack_experts
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
    "stack_experts",
    "take_out_experts",
    "unstack_experts",
    "unused_experts",
]
