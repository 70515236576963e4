"""Asks the driver for every function at every version, past the library and through it, and tells where they differ."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import CFUNCTYPE, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

VERSIONS = [2000, 3000, 3020, 4000, 6000, 7000, 8000, 9000, 10000, 10020, 11000, 11020, 11030, 11040]
VERSIONS += [12000, 12020, 12030, 12050, 12080, 13000, 13050]
FLAGS = (0, 1, 2)  # none, legacy stream, the thread's own stream


def functions(path: str, symbols: dict[str, int]) -> dict[str, int]:
    """The addresses of what a library exports, without asking the loader for any of it."""
    handle = ctypes.CDLL(path)._handle
    base = c_size_t.from_address(handle).value  # the first word of a link_map
    return {name: base + offset for name, offset in symbols.items()}


def main() -> None:
    told = json.load(sys.stdin)
    driver = functions(*told["driver"])
    hooks = functions(*told["library"])
    named: dict[int, set[int]] = {}
    """The hooks that may stand in for a function of the driver."""
    for name, address in driver.items():
        named.setdefault(address, set()).update({hooks[name]} if name in hooks else set())

    asked = routed = 0
    wrong: list[object] = []
    interfaces = {
        "cuGetProcAddress": CFUNCTYPE(c_int, c_char_p, c_void_p, c_int, c_uint64),
        "cuGetProcAddress_v2": CFUNCTYPE(c_int, c_char_p, c_void_p, c_int, c_uint64, c_void_p),
    }
    for by, interface in interfaces.items():
        real, ours = interface(driver[by]), interface(hooks[by])
        for name in [*told["names"], "cuNoSuchFunction", "", "nvmlInit"]:
            for version in VERSIONS:
                for flags in FLAGS:
                    answers = []
                    for function in (real, ours):
                        found, status = c_size_t(12345), c_int(-1)
                        rest = () if by == "cuGetProcAddress" else (byref(status) if version % 100 else None,)
                        result = function(name.encode(), byref(found), version, flags, *rest)
                        answers.append((result, status.value, found.value))
                    (result, status_value, found_value), answer = answers
                    asked += 1
                    stand_ins = named.get(found_value) or {found_value}
                    routed += result == 0 and found_value not in stand_ins
                    if answer[:2] != (result, status_value) or answer[2] not in stand_ins:
                        wrong.append((by, name, version, flags, answers))
        for arguments in ((None, c_size_t(), 12000, 0), (b"cuInit", None, 12000, 0), (b"cuInit", c_size_t(), 12000, 9)):
            name_given, place, version, flags = arguments
            rest = () if by == "cuGetProcAddress" else (None,)
            where = None if place is None else byref(place)
            results = [function(name_given, where, version, flags, *rest) for function in (real, ours)]
            if results[0] != results[1]:
                wrong.append((by, arguments, results))
    sys.stdout.write(json.dumps({"asked": asked, "routed": routed, "wrong": wrong[:5]}))


main()
