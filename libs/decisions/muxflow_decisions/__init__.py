"""Everything MuxFlow decides, as pure functions and state machines: no clock, no I/O, no asyncio."""
