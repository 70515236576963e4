"""Runs one function of a file beside this one: `run.py FILE FUNCTION`. Its end is the program's result."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[3] / "tests" / "support")]
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()
