"""`secateur push`: a result's folder to the hub, in one commit, and what the hub then has compared with it."""

import sys
from pathlib import Path
from typing import Any

from ...config.hub import PushConfig
from ...system.errors import InputError, VerificationError
from ...system.progress import human_bytes
from .place import Place, check_place, files_of, hub_api, told
from .public import Content, as_in, contents_of, is_same


def check_free(place: Place, given: str, *, overwrite: bool) -> None:
    """Refuse a repository with files in it, of which none can be of the result that is yet to be made.

    Raises:
        InputError: names one of them.
    """
    if place.files and not overwrite:
        raise _taken(place, given, min(place.files))


def push(config: PushConfig, given: str = "NAME") -> str:
    """Upload, compare, and say where it is.

    All files go in one commit, so the repository has the whole result or nothing of it. What was uploaded before an
    interruption is not sent again.

    Args:
        given: the option that the name was given with, for messages.
    Raises:
        InputError: nothing to upload, no right to, another's name, other files there, no network.
        VerificationError: the weights are not those that were verified, or the hub has others than were sent.
    """
    folder = Path(config.folder).expanduser()
    contents = contents_of(folder, config.base_model)
    place = check_place(config.name, given, private=config.private)
    contents = as_in(place.repo, folder, contents)
    different = [
        path for path, digest in place.files.items() if path not in contents or not is_same(contents[path], digest)
    ]
    if different and not config.overwrite:
        raise _taken(place, given, min(different))
    api = hub_api()
    url = f"{api.endpoint}/{place.repo}"
    size = human_bytes(sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents.values()))
    if not different and set(place.files) == set(contents):
        return f"{url} has these {len(contents)} files ({size}) already."
    kept = f" What was uploaded is kept; the same command goes on: secateur push {config.folder} {config.name}"
    with told(f"{given} {place.repo}", kept):
        if not place.exists:
            api.create_repo(place.repo, private=config.private or None, exist_ok=True)
        _commit(api, place, contents)
        check_there(api, place.repo, contents)
    return f"{url}: {len(contents)} files, {size}, each as sent."


def _commit(api: Any, place: Place, contents: dict[str, Content]) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    adds = [CommitOperationAdd(path, content) for path, content in contents.items()]
    deletes = [CommitOperationDelete(path) for path in place.files if path not in contents]
    api.create_commit(place.repo, [*deletes, *adds], commit_message="Upload a result of secateur")


def check_there(api: Any, repo: str, contents: dict[str, Content]) -> None:
    """Compare what a repository has with what was sent.

    Raises:
        VerificationError: names a file.
    """
    there = files_of(api, repo)
    wrong = [path for path in sorted({*there, *contents}) if path not in there or path not in contents]
    wrong += [path for path in sorted({*there} & {*contents}) if not is_same(contents[path], there[path])]
    if wrong:
        raise VerificationError(f"{api.endpoint}/{repo}: {wrong[0]} is not there as it was sent: push again.")


def _taken(place: Place, given: str, path: str) -> InputError:
    return InputError(
        f"{given} {place.repo} has other files ({path}{' and more' if len(place.files) > 1 else ''}): choose another "
        "name, or pass --overwrite to replace them."
    )
