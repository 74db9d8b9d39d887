"""`--push-to-hub`: what is asked of the hub before a run, and the upload at its end."""

from typing import Any

from ..config.adapt import AdaptConfig
from ..config.hub import PushConfig
from ..config.run import RunConfig
from ..system.errors import InputError
from ..system.launcher import rank
from .hub.place import check_place
from .hub.public import no_base, public_base
from .hub.upload import check_free, push
from .summary import loading_lines

GIVEN = "--push-to-hub"


def check_hub(config: RunConfig) -> None:
    """Whether the hub will take a run's result, as far as it can be known before; nothing without `--push-to-hub`.

    Raises:
        InputError: no token or right, another's name, files there, no network; an adapter whose base has no name there.
    """
    if config.push_to_hub is None or rank() > 0:
        return
    adapter = isinstance(config, AdaptConfig) and not config.merge
    if adapter and not (config.base_model or public_base(config.model)):
        raise no_base(config.model)
    check_free(check_place(config.push_to_hub, GIVEN, private=config.private), GIVEN, overwrite=config.overwrite)


def closing_lines(result: dict[str, Any], config: RunConfig) -> str:
    """Where the result is and how to load it; with `--push-to-hub` it is uploaded now.

    Raises:
        InputError, VerificationError: as `push` does; the result stays where it is.
    """
    lines = loading_lines(result)
    if not config.push_to_hub:
        return lines
    wanted = PushConfig(
        folder=config.output, name=config.push_to_hub, private=config.private, base_model=config.base_model,
        overwrite=config.overwrite,
    )  # fmt: skip
    try:
        return f"{lines}\n{push(wanted, GIVEN)}\n"
    except InputError as error:
        raise InputError(f"{error} The result is complete in {config.output}.") from error
