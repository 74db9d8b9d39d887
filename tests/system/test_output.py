"""An output folder is swapped in whole, or is as it was."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from secateur.system.errors import InputError
from secateur.system.finished import forget, results
from secateur.system.output import (
    check_output,
    check_output_file,
    link_or_copy,
    passing_folder,
    replaced_whole,
    scratch,
)


def write_two(output: Path) -> None:
    with replaced_whole(output) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")


def test_replaces_all_or_nothing(tmp_path) -> None:
    output = tmp_path / "deep" / "out"
    write_two(output)
    assert sorted(p.name for p in output.iterdir()) == ["a", "b"]
    (output / "c").write_text("old")
    with pytest.raises(RuntimeError), replaced_whole(output) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert sorted(p.name for p in output.iterdir()) == ["a", "b", "c"]
    write_two(output)
    assert sorted(p.name for p in output.iterdir()) == ["a", "b"]
    assert list(output.parent.iterdir()) == [output]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch) -> None:
    output = tmp_path / "out"
    write_two(output)
    (output / "c").write_text("old")
    rename = Path.rename

    def fails_at_the_swap(self: Path, target: Path) -> Path:
        if target == output and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_at_the_swap)
    with pytest.raises(InputError, match="Input/output error. What was there before is untouched"):
        write_two(output)
    assert (output / "c").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("at", ["first", "second"])
def test_an_interrupt_between_the_renamings_and_after_them(tmp_path, monkeypatch, at) -> None:
    output = tmp_path / "out"
    write_two(output)
    (output / "c").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if (target == output) == (at == "second"):
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "rename", interrupted)
    forget()
    with pytest.raises(KeyboardInterrupt):
        write_two(output)
    new = at == "second"
    assert sorted(path.name for path in output.iterdir()) == (["a", "b"] if new else ["a", "b", "c"])
    assert list(tmp_path.iterdir()) == [output]
    assert results() == [output] * new


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_two(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("error", [None, OSError(1314, "a privilege is not held"), NotImplementedError])
def test_where_there_are_no_links_a_file_is_copied(tmp_path, monkeypatch, error) -> None:
    def refused(path: Path, target: Path) -> None:
        raise error

    (tmp_path / "weights").write_bytes(b"1 2 3")
    if error:
        monkeypatch.setattr(Path, "symlink_to", refused)
    link_or_copy(tmp_path / "weights", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"1 2 3"
    assert (tmp_path / "again").is_symlink() is (error is None)


def test_refusals(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "model").mkdir()
    for output, words in (
        (".", "current folder"), ("..", "current folder"), ("file", "is a file"), ("nowhere", "broken link"),
        ("file/out", "cannot be written"), ("model/out", "overlap"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            check_output(Path(output), overwrite=True, model_folder=tmp_path / "model")


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_whichever_library_meets_it(tmp_path, full) -> None:
    error = SafetensorError("Error while serializing: I/O error: " + ("File too large (os error 27)" if full else "x"))
    with pytest.raises(InputError if full else SafetensorError) as raised, replaced_whole(tmp_path / "out"):
        raise error
    if full:
        assert "could not be written: Error while serializing" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_names_that_no_file_system_takes(tmp_path) -> None:
    """A name is as long as the temporary one beside it lets it be, in bytes; nothing is created while that is tried."""
    (tmp_path / "l").symlink_to("l")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    for name, words in {
        "a" * 237: "has 237 bytes, and 236 is the most", "ä" * 120: "has 240 bytes, and 236 is the most",
        "a" * 300 + "/x": "has 300 bytes, and a name has 255 at most", "/".join(["b" * 200] * 20): "the whole path is",
        "l/x": "a loop of links", "one/deep/x": "a loop of links", "file/deep/x": "file is a file, no folder",
        "gone/x": "gone is a broken link, no folder", "o\0x": "a NUL character", "o\ud800": "is not UTF-8",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words) as told:
            check_output(tmp_path / name, overwrite=True)
        assert len(str(told.value)) < 400
        with pytest.raises(InputError, match=words.replace("236", "245").replace("237", "246").replace("240", "249")):
            check_output_file("--output", tmp_path / f"{name}{'b' * 9}", overwrite=True)
    assert sorted(tmp_path.iterdir()) == before


def test_the_longest_names_are_written(tmp_path) -> None:
    write_two(tmp_path / ("a" * 236))
    check_output(tmp_path / ("ä" * 118), overwrite=False)
    with pytest.raises(InputError, match="has 236 bytes, and 232 is the most"):
        check_output(tmp_path / ("a" * 236), overwrite=True)  # what is there is moved aside
    write_two(tmp_path / ("a" * 232))
    write_two(tmp_path / ("a" * 232))
    write_two(tmp_path / "blank at its end ")


def test_what_a_command_reads_is_not_overwritten(tmp_path) -> None:
    data, model = tmp_path / "d.txt", tmp_path / "model"
    data.write_text("text")
    model.mkdir()
    (tmp_path / "link").symlink_to(data)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    (model / "eval.json").write_text('{"environment": {}}')
    inputs = {"--data": str(data), "--model": str(model), "--against": None, "--task-data": "some/hub-name"}
    for path in (data, tmp_path / "link", model / "config.json", model / "model.safetensors"):
        with pytest.raises(InputError, match="is read by this command .--(data|model)"):
            check_output_file("--output", path, overwrite=True, inputs=inputs)
    for path in (model / "eval.json", model / "new.json", tmp_path / "new.json"):
        check_output_file("--output", path, overwrite=True, inputs=inputs)


def test_no_room_where_a_result_is_checked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    words = rf"no space left in {tmp_path}.*set TMPDIR"  # the output's disk is not to be blamed
    with pytest.raises(InputError, match=words), replaced_whole(tmp_path / "out"), scratch() as folder:
        assert folder.parent == tmp_path
        raise error
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_goes_and_what_is_in_use_stays(tmp_path) -> None:
    left, strange = tmp_path / "x-left", tmp_path / "x-strange"
    for folder in (left, strange):
        folder.mkdir()
        (folder / "weights").write_text("w")
    (left / "lock").touch()  # as a kill would leave it
    with passing_folder("x-", tmp_path) as first, passing_folder("x-", tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second, strange])
    assert list(tmp_path.iterdir()) == [strange]
