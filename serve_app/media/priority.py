"""Keeps SVT-AV1 from taking real-time priority.

In a root process, SVT-AV1 (4.1.0) gives its threads, and the thread that starts it, the highest real-time priority,
which starves everything else on the machine. To take that back afterwards isn't enough: glibc remembers a thread's
priority, and every thread that ZeroMQ starts from there asks for the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_CAP_SYS_NICE = 23
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """32 capabilities each: those in force, those that may be taken and those that programs inherit."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def no_realtime_priority() -> Iterator[None]:
    """Drop CAP_SYS_NICE (capabilities(7)) from this thread and from those that it starts, which keep it dropped."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc is None or not hasattr(libc, "capget") or libc.capget(ctypes.byref(header), sets) != 0:
        yield
        return
    before = sets[0].effective
    sets[0].effective &= ~(1 << _CAP_SYS_NICE)
    libc.capset(ctypes.byref(header), sets)
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)
