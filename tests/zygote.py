"""Processes that have imported torch, transformers and peft already: a test waits for its own work alone.

`secateur.verify` reads each result back in a fresh process, most of whose time goes into imports. Here one process
makes them, forks for each request and has no secateur, as the fresh one. Commands that tests start as processes,
fixtures of a whole module, and tests marked `slow` use fresh ones.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVER = r"""
import json, os, sys, traceback
import safetensors.torch, torch, transformers, peft
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaForCausalLM

print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(task["environment"])
    sys.argv = ["-c", task["argument"]]
    code = 0
    try:
        exec(compile(task["source"], "<string>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


class Zygote:
    """`run_python` of `secateur.verify`, by a fork of a process that is started once."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="secateur-zygote-")
        # Remote code is copied to one folder for all requests, whose file times are too coarse to tell copies apart.
        environment = {**os.environ, "HF_MODULES_CACHE": self.folder.name}
        command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", SERVER]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen(command, text=True, env=environment, **pipes)

    def __call__(self, source: str, argument: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        assert self.server.stdin
        assert self.server.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            task = {"source": source, "argument": str(argument), "environment": environment, **files}
            print(json.dumps(task), file=self.server.stdin, flush=True)
            answer = self.server.stdout.readline().strip()
            if answer == "ready":
                answer = self.server.stdout.readline().strip()
            printed = {name: Path(file).read_text() if Path(file).exists() else "" for name, file in files.items()}
        return subprocess.CompletedProcess([], int(answer), **printed)

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.folder.cleanup()
