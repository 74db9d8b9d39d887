"""Blocks that several layers share by tied weights (Zamba): one module in all of them, so that LoRA is one, too."""

from collections.abc import Iterator

from torch import nn

from ..families import Family


def share_(model: nn.Module, family: Family) -> None:
    """Put the first of the blocks with the same weights in the place of the others. Before LoRA is added."""
    first: dict[int, nn.Module] = {}
    for layer, block in _blocks(model, family):
        assert family.shared is not None
        one = first.setdefault(id(next(block.parameters())), block)
        if one is not block:
            layer.set_submodule(family.shared, one)


def repeated(model: nn.Module, family: Family) -> set[nn.Module]:
    """The layers whose shared block stands in an earlier one already."""
    seen: set[nn.Module] = set()
    found = set()
    for layer, block in _blocks(model, family):
        if block in seen:
            found.add(layer)
        seen.add(block)
    return found


def is_shared(model: nn.Module, family: Family) -> bool:
    """Whether no two blocks have the same weights: they are one, as `share_` makes them."""
    weights = {id(next(block.parameters())): block for _, block in _blocks(model, family)}
    return len(weights) == len({block for _, block in _blocks(model, family)})


def tied_linears(model: nn.Module) -> set[str]:
    """Paths of linears whose weights stand in several places, under each of their names."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            places.setdefault(id(module.weight), []).append(path)
    return {path for paths in places.values() if len(paths) > 1 for path in paths}


def _blocks(model: nn.Module, family: Family) -> Iterator[tuple[nn.Module, nn.Module]]:
    layers = find(model, family.layers) if family.shared else None
    for layer in layers.children() if layers is not None else ():
        block = find(layer, family.shared or "")
        if block is not None:  # else it is of another kind
            yield layer, block


def find(module: nn.Module, path: str) -> nn.Module | None:
    """What is at a path, None where there is nothing."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
