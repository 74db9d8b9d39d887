"""Output folders: checked before the run, swapped into place whole at its end."""

import errno
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir, mkdtemp

import psutil

from .errors import InputError, SecateurError, disk_is_full
from .finished import lands
from .locks import LOCK, held
from .places import BESIDE_FILE, BESIDE_OLD, check_no_input, check_place
from .progress import megabytes


def check_output(
    output: Path,
    *,
    overwrite: bool,
    model_folder: Path | None = None,
    needed_bytes: int | None = None,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Refuse an output that cannot or must not be written. Creates nothing.

    Args:
        inputs: path -> the flag it was given with; what `overwrite` must not delete. Other names do no harm.
    Raises:
        InputError: a file, a non-empty folder without `overwrite`, a folder in (or around) the model's, a
            place without write permission or with less than `needed_bytes` free, a folder with an input in it.
    """
    check_place("--output", output)
    if output.exists():  # what is there is moved aside under a longer name
        check_place("--output", output, beside=BESIDE_OLD)
    if output.is_symlink() and not output.exists():
        raise InputError(f"--output {output} is a broken link: choose another folder.")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file: choose a folder.")
    if Path.cwd().is_relative_to(output.resolve()):
        raise InputError(f"--output {output} is the current folder or one around it: choose a folder inside it.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise InputError(f"--output {output} is not empty: choose another folder, or pass --overwrite to replace it.")
    if model_folder is not None:
        target, model = output.resolve(), model_folder.resolve()
        if target == model or target.is_relative_to(model) or model.is_relative_to(target):
            raise InputError(f"--output {output} and the model folder {model_folder} overlap: choose a folder apart.")
    for name, given in (inputs or {}).items():
        path = Path(name).expanduser()
        # A link in the output would go; what a link elsewhere points to would go too.
        if path.exists() and any(place.is_relative_to(output.resolve()) for place in (_unlinked(path), path.resolve())):
            raise InputError(
                f"--output {output} holds {given} {name}, which would be deleted with it: choose another folder."
            )
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--output {output}: {parent} cannot be written to: choose another place.")
    free = shutil.disk_usage(parent).free
    if needed_bytes is not None and free < needed_bytes:
        raise InputError(
            f"--output {output}: the result needs about {megabytes(needed_bytes)} and {parent} has "
            f"{megabytes(free)} free: make room, or choose another place."
        )


def _unlinked(path: Path) -> Path:
    """Where a file or a link itself lies, whatever it points to."""
    return path.absolute().parent.resolve() / path.name


def check_output_file(
    option: str, path: Path, *, overwrite: bool, inputs: Mapping[str, str | None] | None = None
) -> None:
    """Refuse a file that cannot or must not be written, before the work that it is to hold. Leaves nothing behind.

    Args:
        inputs: flag -> the name that was given with it, of what the command reads; `overwrite` does not replace it.
    Raises:
        InputError: it exists (without `overwrite`), is a folder or an input, or lies where nothing can be written.
    """
    check_place(option, path, beside=BESIDE_FILE)
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: give a file in it.")
    if path.exists() and not overwrite:
        raise InputError(f"{option} {path} exists: pass --overwrite to replace it, or choose another name.")
    check_no_input(option, path, {name: flag for flag, name in (inputs or {}).items() if name})
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror}): choose another place.") from None


def room_words(folder: Path, needed_bytes: float | None) -> str:
    """What is needed and what is free, after a write that failed."""
    free = shutil.disk_usage(folder).free
    # What did not fit into what is free now needs more than that, whatever was reckoned.
    needed = f"about {megabytes(needed_bytes)}" if needed_bytes and needed_bytes > free else "more"
    found = [f"{needed} needed", f"{megabytes(free)} free there"]
    if hasattr(psutil, "RLIMIT_FSIZE"):  # Linux and FreeBSD
        longest, _ = psutil.Process().rlimit(psutil.RLIMIT_FSIZE)
        if longest != psutil.RLIM_INFINITY:
            found.append(f"a file may have {megabytes(longest)} (ulimit -f)")
    return ", ".join(found)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what the check of a result needs; it goes afterwards.

    Raises:
        InputError: there is no room for it, which is another place than the output's.
    """
    try:
        with passing_folder("secateur-verify-", Path(gettempdir())) as folder:
            yield folder
    except SecateurError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        place = Path(gettempdir())
        raise InputError(
            f"no space left in {place}, where a result is checked ({room_words(place, None)}): make room there, or set "
            "TMPDIR to another folder."
        ) from error


def _is_ours(path: Path) -> bool:
    """Whether this user made it; a Windows user has a folder of his own for what is temporary."""
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


@contextmanager
def passing_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """A folder in `parent` that goes afterwards; those of this prefix that killed processes left there go now.

    Whoever lives holds a lock in its own. Where none can be had, a folder stays until it is deleted by hand.
    """
    for path in parent.glob(f"{prefix}*"):
        with suppress(OSError, InputError):  # another user's, gone by now, or in use
            if not path.is_symlink() and _is_ours(path) and (path / LOCK).exists():
                with held(path / LOCK, str(path)) as alone:
                    if alone:
                        shutil.rmtree(path)
    with TemporaryDirectory(prefix=prefix, dir=parent) as name, ExitStack() as stack:
        with suppress(InputError):
            if not stack.enter_context(held(Path(name) / LOCK, name)):
                (Path(name) / LOCK).unlink()  # it would make the folder look dead to who can lock there
        yield Path(name)


def tidy_beside(output: Path) -> None:
    """Remove what a writer of `output` that was killed left beside it.

    Raises:
        InputError: another process writes there.
    """
    output = output.resolve()
    prefix = f".{output.name}.secateur-"
    if any(output.parent.glob(f"{glob.escape(prefix)}*")):
        with held(output.with_name(prefix + "lock"), f"--output {output}"):
            _clean_up(output, prefix)


@contextmanager
def replaced_whole(output: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without an error.

    What stood there before is moved aside first and removed only when the new folder is in place. On an error
    the temporary folder goes and `output` is as it was. One process at a time writes to an output; what one that was
    killed left behind goes.

    Args:
        needed_bytes: of what will be written, about; for the message when there is no room.
    Raises:
        InputError: the disk is full, the place cannot be written to, or another process writes there.
    """
    output = output.resolve()  # a link stays, and what it points to is replaced
    prefix = f".{output.name}.secateur-"
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(output.with_name(prefix + "lock"), f"--output {output}"))
            _clean_up(output, prefix)
            temporary = Path(mkdtemp(dir=output.parent, prefix=prefix))
        except OSError as error:
            raise InputError(f"--output {output} cannot be written: {error.strerror}.") from None
        yield from _written(output, temporary, needed_bytes)


def _clean_up(output: Path, prefix: str) -> None:
    """Remove what killed processes left; their lock is ours now, so nobody works there.

    A kill between the two renames of a replacement leaves the earlier result under its other name: it comes back.
    """
    for path in sorted(output.parent.glob(f"{glob.escape(prefix)}*.old")):
        if not output.exists():
            path.rename(output)
    for path in output.parent.glob(f"{glob.escape(prefix)}*"):
        if path.is_dir():
            shutil.rmtree(path)


@contextmanager
def trial(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write in before any work, which is then renamed, as a result is, and removed.

    Raises:
        InputError: what is there does not take it, as a bucket that is mounted takes no renaming of folders.
    """
    parent = output.absolute().parent
    while not parent.is_dir():
        parent = parent.parent
    what = "hold a folder"
    try:
        with TemporaryDirectory(prefix=".secateur-trial-", dir=parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            what = "take a result's files"
            yield made
            what = "rename a folder"
            _follow_umask(made)
            made.rename(made.with_name("renamed"))
    except OSError as error:
        raise InputError(
            f"--output {output}: {parent} does not {what} ({error.strerror or error}): choose another place."
        ) from error


def _follow_umask(folder: Path) -> None:
    """Modes as of files made here: `mkdtemp` and safetensors make theirs for the owner alone.

    Some file systems (CIFS, vfat, buckets that are mounted) have no modes to change: theirs stay.
    """
    sample = folder / ".mode"
    sample.touch()
    mode = sample.stat().st_mode & 0o666
    sample.unlink()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            with suppress(OSError):
                path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


def _written(output: Path, temporary: Path, needed_bytes: int | None) -> Iterator[Path]:
    """Hand out the temporary folder, then swap it into place."""
    old = temporary.with_name(temporary.name + ".old")
    try:
        with suppress(OSError):
            temporary.chmod(0o755)
        yield temporary
        _follow_umask(temporary)
        lands(temporary, output)
        try:
            if output.exists():
                output.rename(old)
            temporary.rename(output)
        except BaseException:
            if old.exists() and not output.exists():
                old.rename(output)
            raise
    except SecateurError:
        raise
    except Exception as error:  # each library that writes has an error of its own for a full disk
        if not isinstance(error, OSError) and not disk_is_full(error):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if disk_is_full(error):
            shutil.rmtree(temporary, ignore_errors=True)  # what is free is free without it
            reason += f" ({room_words(output.parent, needed_bytes)})"
        raise InputError(
            f"--output {output} could not be written: {reason}. What was there before is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if output.exists():  # the new one
            shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A file under a second name: a link, or a copy where there are none (vfat, a Windows user who may make none)."""
    try:
        target.symlink_to(source)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)
