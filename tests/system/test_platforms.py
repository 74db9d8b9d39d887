"""What other systems lack is taken away here, and a small run still ends well. None of them was at hand."""

import json
import os
import subprocess
import sys

from tiny import save_tiny

ELSEWHERE = """
import json, os, signal, stat, sys, threading, warnings
sys.modules["fcntl"] = None
import filelock
del sys.modules["fcntl"]
import accelerate, datasets, peft, psutil, torch, transformers  # they ask which system they are on; we shall not know
from transformers import Trainer
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # not on Windows
for name in ("fork", "getuid", "killpg", "pathconf", "symlink", "sysconf"):
    delattr(os, name)
del signal.SIGHUP
sync = os.fsync
def of_what_is_written(handle):
    stat.S_ISDIR(os.fstat(handle).st_mode) or os.write(handle, b"")  # as on Windows: refused where it is read alone
    sync(handle)
os.fsync = of_what_is_written
warnings.filterwarnings("error", category=EncodingWarning, module="secateur")
from secateur.cli import main
codes = []
runs = threading.Thread(target=lambda: codes.extend(main(given) for given in json.loads(sys.argv[1])))
runs.start()  # where no handler of a signal can be set
runs.join()
print(*codes, "and no more", file=sys.stderr)
"""


def test_a_run_where_a_system_lacks_what_linux_has(tmp_path) -> None:
    """No fcntl, resource, fork, SIGHUP, links, no flush of what is open to read alone; no handlers of signals; every
    `open` of ours names its encoding; an odd path; streams that know Western letters alone, as a pipe's on Windows."""
    place = tmp_path / "Bäume \\\\ und Äste"
    place.mkdir()
    save_tiny(place / "model")
    (place / "Text.txt").write_text("Die Gärtnerin schneidet den Baum, und der Baum wächst. " * 40, encoding="utf-8")
    flags = [
        "--model",
        "model",
        "--data",
        "Text.txt",
        "--output",
        "aus gabe",
        "--criterion",
        "gate",
        "--sparsity",
        "0.2",
    ]
    flags += ["--steps", "4", "--batch-size", "2", "--seq-len", "16", "--frequency", "1", "--dtype", "float32"]
    flags += ["--save-steps", "2"]
    small = ["--model", "aus gabe", "--device", "cpu"]
    commands = [
        ["prune", *flags],
        ["plan", "--model", "aus gabe", "--sparsity", "0.2", "--device-tflops", "1"],
        ["eval", *small, "--data", "Text.txt", "--seq-len", "16"],
        ["sample", *small, "--prompts", "\u2192 \u00dc", "--max-new-tokens", "4"],
        ["criteria"],
    ]
    run = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", ELSEWHERE, json.dumps(commands)],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="cp1252",
        check=False,
    )
    assert run.stderr.splitlines()[-1] == "0 0 0 0 0 and no more", run.stderr
    assert (place / "aus gabe" / "model.safetensors").is_file()
    assert not list(place.glob(".*"))  # nor any lock or half-written folder
