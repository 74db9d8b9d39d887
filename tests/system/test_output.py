"""An output folder is swapped in whole, or is as it was."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from secateur.system.errors import InputError
from secateur.system.output import check_output, replaced_whole


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


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_two(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


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
