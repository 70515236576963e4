"""The C half of the pages: what has to be atomic, and what Python and xCUDA have to see alike."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from muxflow_device import native


@cache
def library() -> Any:
    """Load it. Raises FileNotFoundError, which says what to do, when it has not been built.

    The interpreter's lock is kept during calls (PyDLL): they are shorter than it takes to give it away and get it back.
    """
    loaded = ctypes.PyDLL(str(native.path("libmuxflow_pages.so")))
    for name, result, *arguments in (
        ("mux_store32", None, c_void_p, c_uint32),
        ("mux_store64", None, c_void_p, c_uint64),
        ("mux_store64s", None, c_void_p, c_int64),
        ("mux_beat", None, c_void_p),
        ("mux_readings_write", None, c_void_p, c_void_p),
        ("mux_reader_new", c_void_p, ctypes.c_char_p),
        ("mux_reader_look", None, c_void_p, c_void_p),
        ("mux_reader_free", None, c_void_p),
        ("mux_owner_of", c_uint64, c_int32),
        ("mux_owner_lives", ctypes.c_bool, c_uint64),
    ):
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded
