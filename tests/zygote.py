"""Processes that have made their imports already: a test waits for its own work alone.

A process that starts from nothing spends 5 to 15 s on imports. Here a server makes them once and forks for requests:
`reader()` has torch, transformers and PEFT and reads results back for `checkpoint.verify`, without secateur, as the
fresh process does, also for the processes of `runner()`, which has secateur too, and is one process or several, as
torchrun starts them. Tests of launchers and signals and tests marked `slow` use processes from nothing.
"""

import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBRARIES = "import safetensors.torch, torch, transformers, peft; from transformers import LlamaForCausalLM"
OURS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import datasets, zygote
import secateur.cli.entry, secateur.runs.prune, secateur.runs.adapt, secateur.compare.command
import secateur.checkpoint.verify, secateur.evaluation.assess
secateur.checkpoint.verify.run_python = zygote.read_back
"""
READER = "SECATEUR_TEST_READER"
"""Environment variable: where the processes of `runner()` find the reader."""
LIMIT_S = 500

SERVER = r"""
import json, os, runpy, select, signal, socket, sys, time, traceback

def work(task, environment):
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    code = 0
    try:
        if task["source"]:
            sys.argv = ["-c", *task["arguments"]]
            exec(compile(task["source"], "<string>", "exec"), {"__name__": "__main__"})
        elif task["arguments"][0] == "-m":
            sys.argv = task["arguments"][1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = task["arguments"]
            sys.path.insert(0, os.path.dirname(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

def serve(task):
    running, worst = set(), 0
    for environment in task["environments"]:
        child = os.fork()
        if child == 0:
            work(task, environment)
        running.add(child)
    deadline = time.monotonic() + task["limit"]
    while running:
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                running.remove(child)
                worst = worst or os.waitstatus_to_exitcode(status)
        if running and (worst or time.monotonic() > deadline):  # as torchrun ends the others when one has failed
            for child in running:
                os.kill(child, signal.SIGTERM if worst else signal.SIGKILL)
            deadline, worst = time.monotonic() + 30, worst or -9
        time.sleep(0.01)
    return worst

place = socket.socket(socket.AF_UNIX)
place.bind(sys.argv[1])
place.listen()
print("listening", flush=True)
while sys.stdin not in select.select([sys.stdin, place], [], [])[0]:  # which ends with the process that made it
    asking, _ = place.accept()
    with asking, asking.makefile("rw") as line:
        line.write(f"{serve(json.loads(line.readline()))}\n")
"""


class Zygote:
    """A server, and what it answers."""

    def __init__(self, imports: str, *flags: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="secateur-zygote-")
        self.address = str(Path(self.folder.name) / "asked")
        # Remote code is copied to one folder for all requests, whose file times are too coarse to tell copies apart.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": self.folder.name}
        command = [sys.executable, *flags, "-B", "-W", "ignore", "-c", imports + SERVER, self.address]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen(command, text=True, env=environment, **pipes)
        atexit.register(self.close)
        assert self.server.stdout
        assert self.server.stdout.readline() == "listening\n"

    def ask(self, environments: list[dict[str, str]], arguments: list[str], source: str = "") -> Any:
        """A `CompletedProcess` of as many processes as environments are given, what they print together."""
        return ask(self.address, environments, arguments, source)

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.folder.cleanup()


def ask(address: str, environments: list[dict[str, str]], arguments: list[str], source: str = "") -> Any:
    """The same of the server at an address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        task = {"environments": environments, "arguments": arguments, "source": source, "limit": LIMIT_S, **files}
        server.connect(address)
        with server.makefile("rw") as line:
            line.write(f"{json.dumps(task)}\n")
            line.flush()
            code = int(line.readline())
        printed = {name: Path(file).read_text() if Path(file).exists() else "" for name, file in files.items()}
    return subprocess.CompletedProcess(arguments, code, **printed)


@functools.cache
def reader() -> Zygote:
    return Zygote(LIBRARIES, "-I")


@functools.cache
def runner() -> Zygote:
    os.environ[READER] = reader().address
    return Zygote(f"{LIBRARIES}\n{OURS}")


def read_back(source: str, argument: Path, environment: dict[str, str]) -> Any:
    """`secateur.checkpoint.verify.run_python` by a fork."""
    return ask(os.environ.get(READER) or reader().address, [environment], [str(argument)], source)


def launch(processes: int, *arguments: str) -> Any:
    """What `torchrun --nproc-per-node PROCESSES ARGUMENTS` does, by forks: `-m secateur ...` or a script."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    size = str(processes)
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(processes)]
    return runner().ask([{**os.environ, "OMP_NUM_THREADS": "1", **rank} for rank in ranks], list(arguments))
