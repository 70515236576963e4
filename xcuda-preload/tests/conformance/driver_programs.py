"""Runs programs by which libs/simgpu holds its driver to what it promises: `driver_programs.py FILE FUNCTION...`.

Each runs in a child of this process; prints its name and how it ended.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "libs" / "simgpu" / "tests" / "programs"), str(ROOT / "tests" / "support")]


def main(file: str, *names: str) -> None:
    module = importlib.import_module(file)
    for name in names:
        child = os.fork()
        if child == 0:
            try:
                getattr(module, name)()
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(1)
            sys.exit()
        sys.stdout.write(f"{name} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


main(*sys.argv[1:])
