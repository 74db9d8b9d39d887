"""From a target to a budget: how small (`target`), what of it can be reached (`reach`), how much goes from where."""

from .make import make_budget, shape_by_quota

__all__ = ["make_budget", "shape_by_quota"]
