"""One holder at a time, whatever the moment; what killed writers left behind goes, and never what a user owns."""

import os
import subprocess
import sys
import threading
import time

import pytest

from secateur.system import locks
from secateur.system.errors import InputError
from secateur.system.locks import held, locked
from secateur.system.output import replaced_whole


def test_a_file_that_lost_its_name_is_no_lock(tmp_path, monkeypatch) -> None:
    """Opened before its holder unlinked it, locked after: another process may hold the new file of that name."""
    path, real, raced = tmp_path / "lock", locks.lock_descriptor, []

    def late(file, **how):
        if not raced:
            raced.append(True)
            path.unlink()  # the holder ends here, and ...
            path.write_text("process 1 on another\n")  # ... a third process makes the file anew
        return real(file, **how)

    monkeypatch.setattr(locks, "lock_descriptor", late)
    with held(path, "this"):
        assert os.path.samestat(os.stat(path), os.stat(path))
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        monkeypatch.undo()
        with pytest.raises(InputError, match="this is in use by process"), held(path, "this"):
            pass
    assert not path.exists()


def test_never_two_holders(tmp_path) -> None:
    inside, most, entered = [], [], []

    def work():
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            try:
                with locked(tmp_path / "work"):
                    inside.append(1)
                    most.append(len(inside))
                    entered.append(1)
                    inside.pop()
            except InputError:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(entered) > 10
    assert not (tmp_path / "work").exists()


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path) -> None:
    (tmp_path / "work").write_text("x")
    with pytest.raises(FileExistsError, match="work"), locked(tmp_path / "work"):
        pass


def test_a_folder_with_something_in_it_stays(tmp_path) -> None:
    with locked(tmp_path / "work"):
        (tmp_path / "work" / "checkpoint").write_text("x")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["checkpoint"]
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "other"):
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from secateur.system.output import replaced_whole
with replaced_whole(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    if sys.argv[2] == "swap":
        real = os.rename
        import pathlib
        def rename(self, target, real=pathlib.Path.rename):
            if str(target) == sys.argv[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)
        pathlib.Path.rename = rename
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["write", "swap"])
def test_what_a_killed_writer_left_goes(tmp_path, when) -> None:
    output = tmp_path / "out [1]"  # a name that a pattern must not take for one
    output.mkdir()
    (output / "weights").write_text("before")
    (tmp_path / f".{output.name}.settings").mkdir()  # the user's own
    subprocess.run([sys.executable, "-c", KILLED, str(output), when], check=False)
    assert len(list(tmp_path.iterdir())) == {"write": 4, "swap": 4}[when]
    assert output.exists() == (when == "write")
    with pytest.raises(ZeroDivisionError), replaced_whole(output):
        assert (output / "weights").read_text() == "before"  # back again
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{output.name}.settings", output.name]
    assert (output / "weights").read_text() == "before"


def test_a_second_writer_is_refused(tmp_path) -> None:
    with replaced_whole(tmp_path / "out") as folder:
        (folder / "weights").write_text("first")
        with pytest.raises(InputError, match="out is in use by process"), replaced_whole(tmp_path / "out"):
            pass
        assert (folder / "weights").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
