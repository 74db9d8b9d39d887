"""Which options `--help` shows, and in which order of their groups. `--help-all` shows every one."""

RUN = frozenset({"model", "data", "eval_data", "output", "overwrite", "steps", "batch_size", "seq_len", "lr", "resume"})
"""Of what trains."""
OF_MOST_RUNS = {
    "prune": RUN | {"sparsity", "criterion", "allocation"},
    "adapt": RUN | {"init_rank", "rank", "response_only"},
    "sparsify": RUN | {"pattern", "method", "calibration_tokens"},
    "compare": RUN - {"eval_data", "resume"} | {"evaluate_on", "sparsity", "criterion", "allocation"},
    "plan": {"model", "sparsity", "target_params", "criterion", "allocation", "compensate", "steps", "batch_size"}
    | {"seq_len", "load_in", "device_memory", "devices", "json"},
    "eval": {"model", "against", "data", "preset", "seq_len", "max_tokens", "tasks", "limit", "answers", "output"}
    | {"overwrite"},
}
"""Command -> options that most of its runs need. The others have so few that all are shown."""
GROUPS = ("runs", "model", "prompts", "data", "tasks", "answers", "comparison", "output", "plan", "pruning", "training",
          "lora", "criterion", "schedule")  # fmt: skip
"""The first ones; those that are not named come after them."""


def shown(command: str, names: set[str]) -> set[str]:
    """Those of a command's options that `--help` lists."""
    return names & OF_MOST_RUNS.get(command, names)


def place_of(group: str) -> int:
    """Where a group of options stands."""
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)
