"""How small the model shall get, in whichever way the user says it, as the sparsity that everything else knows."""

from dataclasses import dataclass

from ...config.prune import PruneConfig
from ...config.sizes import parse_bytes, parse_count, parse_duration, parse_speedup
from ...speed.costs import Costs
from ...system.errors import InputError
from ...system.progress import human_bytes, human_count
from .reach import Unreachable


@dataclass(frozen=True)
class TimeTarget:
    """How fast the pruned model shall be, by a cost table."""

    at: str
    """What is timed, as `--speed-at` says it."""
    speedup: float
    """How many times as fast as the dense model."""
    ms: float
    """What the pruned model shall take."""
    dense_ms: float
    """What the dense one takes by the table."""
    table: str
    """Where the times come from."""


@dataclass(frozen=True)
class Target:
    """A run's target."""

    words: str
    """As given: `--sparsity 0.2`, `--target-params 80M`, `--target-bytes 160MB` or `--target-speedup 1.5x`."""
    sparsity: float
    """Fraction of the prunable parameters to remove, or of all layers' time where one is asked for; outside of 0 to 1
    where it cannot be reached."""
    parameters: int | None = None
    """Parameters that the whole pruned model shall have, where a size was asked for."""
    time: TimeTarget | None = None
    """Where a time was asked for."""


def resolve_target(config: PruneConfig, dense_params: int, prunable_params: int, parameter_bytes: int) -> Target:
    """The sparsity (dense parameters - target) / prunable parameters that a size comes to.

    Args:
        dense_params: of the whole dense model, tied weights once.
        prunable_params: of its prunable linears.
        parameter_bytes: bytes that a parameter takes in the checkpoint.
    Raises:
        InputError: the model is that small already.
    """
    if config.target_params is not None:
        words = f"--target-params {config.target_params}"
        parameters = parse_count(config.target_params, "--target-params")
        has = _parameters(dense_params)
    elif config.target_bytes is not None:
        words = f"--target-bytes {config.target_bytes}"
        parameters = parse_bytes(config.target_bytes, "--target-bytes") // parameter_bytes
        has = _bytes(dense_params * parameter_bytes)
    else:
        assert config.sparsity is not None, "it has a default where no size is given"
        return Target(f"--sparsity {config.sparsity}", config.sparsity)
    if parameters >= dense_params:
        raise InputError(f"{words} is not below the dense model's own size, {has}: give less.")
    return Target(words, (dense_params - parameters) / prunable_params, parameters)


def resolve_time(config: PruneConfig, costs: Costs) -> Target:
    """The share of all layers' time that a speed-up or a latency takes off.

    Raises:
        InputError: the model is that fast already.
    """
    dense, layers = costs.dense_ms, costs.all_of(costs.units)
    if config.target_speedup is not None:
        words = f"--target-speedup {config.target_speedup}"
        ms = dense / parse_speedup(config.target_speedup, "--target-speedup")
    else:
        words = f"--target-latency {config.target_latency}"
        ms = parse_duration(str(config.target_latency), "--target-latency")
        if ms >= dense:
            raise InputError(f"{words} is not below what the dense model takes, {dense:.4g} ms: give less.")
    if layers <= 0:
        raise InputError(f"{words}: by the cost table no layer takes any time: measure again.")
    time = TimeTarget(config.speed_at, dense / ms, ms, dense, costs.table.source)
    return Target(words, (dense - ms) / layers, time=time)


def time_words(target: Target, error: Unreachable, costs: Costs) -> InputError:
    """An unreachable share of the layers' time, told in the speed-up or the latency that the user asked for."""
    assert target.time is not None, "a time was asked for"
    dense, layers = costs.dense_ms, costs.all_of(costs.units)
    left = sorted(dense - share * layers for share in error.nearest)
    if target.words.startswith("--target-latency"):
        bound, shown = {"at most": "at least", "at least": "at most"}[error.bound], [f"{ms:.4g}ms" for ms in left]
    else:
        bound, shown = error.bound, [f"{dense / ms:.3g}x" for ms in left]
    near = f"{bound} {shown[0]}" if len(shown) == 1 else f"{' and '.join(shown)} are the nearest"
    near = near if shown else "nothing can go"
    return InputError(f"{target.words} ({target.time.at}) is not reachable {error.how}: {near}. {error.remedy}")


def in_words_of(
    target: Target, error: Unreachable, dense_params: int, prunable_params: int, parameter_bytes: int
) -> InputError:
    """An unreachable sparsity, told in the size that the user asked for."""
    if target.parameters is None:
        return error
    sizes = sorted(dense_params - round(sparsity * prunable_params) for sparsity in error.nearest)
    stay = {"at most": "at least", "at least": "at most"}[error.bound]
    in_bytes = target.words.startswith("--target-bytes")
    shown = [_bytes(size * parameter_bytes) if in_bytes else _parameters(size) for size in sizes]
    near = f"{stay} {shown[0]} stay" if len(shown) == 1 else f"{' and '.join(shown)} are the nearest"
    near = near if shown else "nothing can go"
    return InputError(f"{target.words} is not reachable {error.how}: {near}. {error.remedy}")


def _parameters(count: int) -> str:
    return f"{count} parameters ({human_count(count)})"


def _bytes(count: int) -> str:
    return f"{count}B ({human_bytes(count)})"
