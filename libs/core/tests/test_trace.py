from __future__ import annotations

import pytest

from muxflow import trace


def test_a_context_survives_its_header() -> None:
    context = trace.start()
    assert trace.parse(context.traceparent) == context
    assert context.child().trace_id == context.trace_id
    assert context.child().span_id != context.span_id


@pytest.mark.parametrize(
    "header",
    [None, "", "nonsense", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01", f"00-{'G' * 32}-x-01"],
)
def test_a_malformed_header_is_no_context(header: str | None) -> None:
    assert trace.parse(header) is None


def test_a_context_is_current_only_within_its_block() -> None:
    context = trace.start()
    with trace.use(context):
        assert trace.current() is context
    assert trace.current() is None
