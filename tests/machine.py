"""Accelerators that are not there, for tests of what is said and asked of them; nothing is computed on one."""

import torch

from secateur.system.machine import devices

ASKED = ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "TORCH_NCCL_BLOCKING_WAIT", "LOCAL_RANK", "WORLD_SIZE", "RANK")


class Machine:
    """Some devices of one kind, or none; `own` is the one that was made this process's."""

    def __init__(self, monkeypatch, kind: str | None, count: int = 1) -> None:
        self.own: object = None
        monkeypatch.setattr(devices, "accelerator", lambda: kind)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: setattr(self, "own", device))
        monkeypatch.setattr(devices, "name_of_device", lambda device: "Fast One")
        for name in ASKED:
            monkeypatch.setenv(name, "")  # so that what the tests set is taken back
            monkeypatch.delenv(name)
