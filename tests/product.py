"""Cases that cross: some of them in `make test`, all in `make test-all`."""

import os
from collections.abc import Collection
from typing import TypeVar

Case = TypeVar("Case")


def some_of(every: list[Case], some: Collection[Case]) -> list[Case]:
    """`some` of the cases, in their order; with `SECATEUR_ALL` every one."""
    assert not set(some) - set(every), "a case that there is not"
    return every if os.environ.get("SECATEUR_ALL") else [case for case in every if case in some]
