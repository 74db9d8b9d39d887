"""The C library's heap, told to keep what it has while a model trains: each step frees and takes the same tensors."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**30
"""Bytes above which a tensor still gets pages of its own."""
USUAL = 2**25
"""glibc's own upper limit of the same, which it comes to by itself as tensors are freed."""

SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""glibc's own settings of the same."""


@contextmanager
def freed_pages_kept(device: torch.device = CPU) -> Iterator[None]:
    """Inside, glibc keeps freed memory for the next tensor; at the end it hands back what it can.

    By default it hands large pieces back at once, and the kernel clears each page anew when it is asked for again: a
    LoRA step of SmolLM2-135M on two cores takes 1.1 to 1.25 times as long so, for 9 % less memory (docs/log.md). Only
    while training on a CPU: a loader that takes and frees large tensors of many sizes would leave holes. Other C
    libraries are left as they are, and so is a heap that the environment has an own word on.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") and device.type == "cpu" else None
    if libc is None or not hasattr(libc, "mallopt") or any(name in os.environ for name in SET_BY_USER):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * USUAL)
        libc.malloc_trim(0)
