"""Submit a job from Python, wait for its end, read its output.

Finds server and credentials as the command line does: `muxflow up` must be running.
"""

import asyncio
import sys

from muxflow.client import Client, NotConnected
from muxflow.contracts import GpuRequest, JobSpec


async def main() -> int:
    """Run one job; the exit code says whether it succeeded."""
    spec = JobSpec(name="from-python", command=("echo", "hello from Python"), gpu=GpuRequest(memory_bytes=2**30))
    async with Client.connect() as client:
        handle = await client.submit(spec)  # stored: it will not be lost
        await handle.accepted()  # valid: it will be run
        outcome = await handle.outcome()
        print(f"{outcome.job}: {outcome.state.value} at attempt {outcome.attempt}")
        async for piece in client.logs(outcome.job):
            sys.stdout.write(piece.data.decode())
    return 0 if outcome.succeeded else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except NotConnected as error:
        sys.exit(str(error))  # one line that says how to put it right
