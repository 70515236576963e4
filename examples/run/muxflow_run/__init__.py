"""Runs the whole of MuxFlow on one machine, measures it, and writes down how it went: ``python examples/run``.

Real processes: `muxflow up`, the online services and the offline jobs of ``examples/workloads``. The same load comes
three times: the services alone, beside offline programs that nobody controls, beside offline jobs that MuxFlow runs;
then alone again, for the noise. `plan` says what runs; `run` is the course of it; `machine`, `load`, `unprotected` and
`queue` are what it starts; `recorder` and `device_log` what it sees; `phase` and `verdicts` make figures of that;
`report` is what is written, `page` the same for people.
"""
