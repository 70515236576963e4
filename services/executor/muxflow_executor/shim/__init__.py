"""Resident parent of one attempt's program: starts it once, stops it when told, tells truthfully how it ended.

The executor starts it (`muxflow_executor.spare`) and is not needed once it has handed an attempt over: it may be killed
or upgraded while the program runs. Standard library only. On the descriptors that it is started with:

- 0: the handover: the attempt's directory and the program's environment; a pipe, so that secrets touch no disk.
- 1: closed once ``started.json`` or ``exit.json`` is on disk; the executor waits for that.

In the attempt's directory it reads ``intent.json`` and ``stop.json``, elsewhere the node's lease; it writes
``shim.json``, ``started.json``, ``exit.json``, ``shim.err`` and the segments of the output.
"""
