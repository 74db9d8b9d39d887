"""Processes that have made their imports already: a test waits for its own work alone.

A process that starts from nothing spends 5 to 15 s on imports. Here a server makes them once and forks for requests:
`reader()` has torch, transformers and PEFT and reads results back for `checkpoint.verify`, without secateur, as the
fresh process does, also for the processes of `runner()`, which is forked from it and has secateur too, and is one
process or several, as torchrun starts them; forked.py is for what a launcher starts. Tests marked `slow` use processes
from nothing.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = "import safetensors.torch, torch, transformers, peft; from transformers import LlamaForCausalLM"
OURS = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
import datasets, zygote
import secateur.cli.entry, secateur.runs.prune, secateur.runs.adapt, secateur.comparison.command
import secateur.checkpoint.verify, secateur.evaluation.assess
secateur.checkpoint.verify.run_python = zygote.read_back
secateur.checkpoint.verify.start_reader = lambda environment: None
import secateur.comparison.tables, secateur.report.plots
secateur.comparison.tables.plot_perplexity = lambda rows, path: None
from unrendered import Unrendered
secateur.report.plots.LAYOUT, secateur.report.plots.FigureCanvasSVG = "none", Unrendered  # as in conftest.py
"""
UNTIL = """
import os, signal, sys, threading, time
from pathlib import Path
folder, pattern = sys.argv[1:3]
def watch():
    while not any(Path(folder).glob(pattern)):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
from secateur.cli import main
sys.exit(main(sys.argv[3:]))
"""
READER = "SECATEUR_TEST_READER"
"""Environment variable: where the processes of `runner()` find the reader."""
LIMIT_S = 500

SERVER = r"""
import gc, json, os, runpy, select, signal, socket, sys, time, traceback

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
    if "code" in task:
        with open(task["code"], "w") as file:
            file.write(str(code))
    os._exit(code)

stay = []

def serve(task):
    if task["stays"]:
        child = os.fork()
        if child == 0:
            work(task, *task["environments"])
        stay.append(child)
        return child
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

gc.collect()
gc.freeze()  # as in conftest.py
place = socket.socket(socket.AF_UNIX)
place.bind(sys.argv[1])
place.listen()
print("listening", flush=True)
while sys.stdin not in select.select([sys.stdin, place], [], [])[0]:  # which ends with the process that made it
    asking, _ = place.accept()
    with asking, asking.makefile("rw") as line:
        stay = [child for child in stay if os.waitpid(child, os.WNOHANG)[0] == 0]
        if asked := line.readline():  # none from who only looks whether somebody is here
            line.write(f"{serve(json.loads(asked))}\n")
"""


class Zygote:
    """A server, and what it answers."""

    def __init__(self, imports: str, *flags: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="secateur-zygote-")
        self.address = str(Path(self.folder.name) / "asked")
        self.forked: list[int] = []
        # Remote code is copied to one folder for all requests, whose file times are too coarse to tell copies apart.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": self.folder.name}
        command = [sys.executable, *flags, "-B", "-W", "ignore", "-c", imports + SERVER, self.address]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen(command, text=True, env=environment, **pipes)
        atexit.register(self.close)
        assert self.server.stdout
        assert self.server.stdout.readline() == "listening\n"

    def fork(self, imports: str) -> str:
        """Address of a server that has these imports too."""
        address = str(Path(self.folder.name) / f"forked{len(self.forked)}")
        answer = ask(self.address, [dict(os.environ)], [address], imports + SERVER, stays=True)
        self.forked.append(answer.returncode)
        with socket.socket(socket.AF_UNIX) as server:
            while server.connect_ex(address):
                assert psutil.Process(answer.returncode).status() != psutil.STATUS_ZOMBIE, "its imports failed"
                time.sleep(0.02)
        return address

    def close(self) -> None:
        for child in self.forked:
            os.kill(child, signal.SIGKILL)
        self.server.kill()
        self.server.wait()
        self.folder.cleanup()


def ask(
    address: str, environments: list[dict[str, str]], arguments: list[str], source: str = "", *, stays: bool = False
) -> Any:
    """A `CompletedProcess` of as many processes as environments are given, what they print together.

    Args:
        address: of a server.
        stays: nobody waits for the one process, and the exit code is its number.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        # What stays outlives the folder, and may come to its output when that is gone.
        files = {name: os.devnull if stays else str(Path(folder) / name) for name in ("stdout", "stderr")}
        task = {
            "environments": environments,
            "arguments": arguments,
            "source": source,
            "limit": LIMIT_S,
            "stays": stays,
        }
        task |= files
        server.connect(address)
        with server.makefile("rw") as line:
            line.write(f"{json.dumps(task)}\n")
            line.flush()
            code = int(line.readline())
        printed = {
            name: Path(file).read_text(encoding="utf-8") if Path(file).is_file() else "" for name, file in files.items()
        }
    return subprocess.CompletedProcess(arguments, code, **printed)


@functools.cache
def reader() -> Zygote:
    return Zygote(LIBRARIES, "-I")


@functools.cache
def runner() -> str:
    """Its address."""
    os.environ[READER] = reader().address
    return reader().fork(OURS)


def runner_process() -> int:
    """The number of its process, whose children are the ones that it was asked for."""
    runner()
    return reader().forked[0]


def run(*arguments: str, source: str = "") -> Any:
    """What `python ARGUMENTS` does, by a fork: `-m secateur ...`, a script, or the `source` with these arguments."""
    return ask(runner(), [{**os.environ, "OMP_NUM_THREADS": "1"}], list(arguments), source)


def run_until(folder: Path, pattern: str, *arguments: str) -> Any:
    """`secateur ARGUMENTS`, killed (SIGKILL) as soon as there is such a file in `folder`."""
    return run(str(folder), pattern, *arguments, source=UNTIL)


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
    return ask(runner(), [{**os.environ, "OMP_NUM_THREADS": "1", **rank} for rank in ranks], list(arguments))
