"""Memory and events of one process in another: two programs that `test_processes.py` runs against each other."""

import ctypes
import sys
from ctypes import byref, c_uint8, c_void_p

from cuda_calls import (
    INVALID_VALUE,
    MS,
    NOT_READY,
    Work,
    allocate,
    call,
    code,
    context,
    event,
    free_bytes,
    from_device,
    record,
    stream,
    synchronize,
    to_device,
    wait,
)

Handle = c_uint8 * 64
INTERPROCESS = 4 | 2


class _Memory(ctypes.Structure):
    _fields_ = [("bytes", Handle)]


def _lend() -> None:
    context()
    one, work = stream(), Work()
    address, mark = allocate(1 << 20), event(INTERPROCESS)
    to_device(address, b"lent")
    memory, place = _Memory(), _Memory()
    call("cuIpcGetMemHandle", byref(memory), c_void_p(address))
    call("cuIpcGetEventHandle", byref(place), c_void_p(mark))
    work(one, 300 * MS)
    record(mark, one)
    sys.stdout.write(f"{bytes(memory.bytes).hex()} {bytes(place.bytes).hex()}\n")
    sys.stdout.flush()
    assert sys.stdin.readline() == "seen\n"
    assert from_device(address, 8) == b"borrowed"


def _borrow() -> None:
    context()
    memory, place = (_Memory(Handle(*bytes.fromhex(text))) for text in sys.stdin.readline().split())
    before = free_bytes()
    address, mark = c_void_p(), c_void_p()
    call("cuIpcOpenMemHandle_v2", byref(address), memory, 1)
    call("cuIpcOpenEventHandle", byref(mark), place)
    assert free_bytes() == before, "it is charged to its lender alone"
    assert from_device(address.value or 0, 4) == b"lent"
    one = stream()
    wait(mark.value or 0, one)
    assert code("cuStreamQuery", c_void_p(one)) == NOT_READY
    synchronize(one)
    assert code("cuEventQuery", mark) == 0
    to_device(address.value or 0, b"borrowed")
    call("cuIpcCloseMemHandle", address)
    assert code("cuIpcCloseMemHandle", address) == INVALID_VALUE
