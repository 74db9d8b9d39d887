"""What a launcher starts in Python's place: a fork of a process that has made its imports does the work.

    torchrun --nproc-per-node 2 tests/forked.py -m secateur ...

`SECATEUR_TEST_RUNNER` says where that process listens (zygote.py). The fork has this one's environment and output, and
this one ends as the fork does.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        code = Path(folder) / "code"
        task = {
            "environments": [dict(os.environ)],
            "arguments": sys.argv[1:],
            "source": "",
            "stays": True,
            "stdout": f"/proc/{os.getpid()}/fd/1",
            "stderr": f"/proc/{os.getpid()}/fd/2",
            "code": str(code),
        }
        server.connect(os.environ["SECATEUR_TEST_RUNNER"])
        with server.makefile("rw") as line:
            line.write(f"{json.dumps(task)}\n")
            line.flush()
            fork = int(line.readline())
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(fork, number))
        while is_there(fork):
            time.sleep(0.02)
        if code.exists():
            sys.exit(int(code.read_text(encoding="utf-8")))
    os.kill(os.getpid(), signal.SIGKILL)  # as the fork was


if __name__ == "__main__":
    main()
