"""`--version` alone stays a line; with `--verbose` it is what a report of a fault should name, in one paste."""

import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import torch

from secateur.cli import main
from secateur.system import versions
from secateur.system.version import VERSION


def test_version_alone_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"secateur {VERSION}\n"


def test_verbose_names_what_torch_and_the_machine_say(capsys) -> None:
    assert main(["--version", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"secateur {VERSION} (commit ")
    for name in ("torch", "transformers", "peft", "safetensors"):
        assert f"{name} {version(name)}" in lines
    built = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "processors alone"
    assert next(line for line in lines if line.startswith("torch was built for: ")).split(": ")[1].startswith(built)
    assert any(line.startswith("cpu: ") and "logical cores" in line for line in lines)
    assert any(line.startswith("memory: ") and line.endswith(" free") for line in lines)
    assert len([line for line in lines if line.startswith("gpu: ")]) >= max(1, torch.cuda.device_count())
    assert max(map(len, lines)) < 200
    assert "\x1b" not in "".join(lines)
    assert main(["--verbose", "--version"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[0]


def test_verbose_goes_with_version_alone(capsys) -> None:
    assert main(["--verbose", "criteria"]) == 2
    assert "--verbose goes with --version" in capsys.readouterr().err


def test_it_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys; from secateur.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, "--version", "--verbose"], check=True, capture_output=True)
    assert time.monotonic() - began < 10  # half a second on a machine that is not busy


def test_its_end_is_quick() -> None:
    """Python's last collections find nothing to look at; with torch's objects they took two seconds of a core."""
    code = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count(), len(gc.get_objects())))\n"
    code += "from secateur.cli import main\nsys.argv[1:] = ['--version']\nmain()"
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    frozen, left = map(int, out.splitlines()[-1].split())
    assert frozen > 1000 > 10 > left


def test_flags_that_matter_are_those_of_the_processor(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(versions, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("model name\t: X\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16x\nflags\t: sve\n")
    assert versions.cpu_flags() == ["avx2", "amx_bf16"]
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd bf16\n")
    assert versions.cpu_flags() == ["asimd", "bf16"]
    (tmp_path / "cpuinfo").unlink()
    assert versions.cpu_flags() == []
    assert "cpu flags: none of avx2 " in versions.versions_text()


def test_gpus_are_what_the_driver_says(tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'NVIDIA H200, 143771 MiB, 570.1\\nNVIDIA H200, 143771 MiB, 570.1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    text = versions.versions_text()
    assert text.count("gpu: NVIDIA H200, 143771 MiB, 570.1") == 2
    assert "gpu: none found" not in text
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 9\n")
    assert "no devices" not in versions.versions_text()


def test_what_is_not_installed_is_said(monkeypatch) -> None:
    monkeypatch.setattr(versions, "OPTIONAL", ("no-such-package",))
    assert "not installed: no-such-package" in versions.versions_text().splitlines()
