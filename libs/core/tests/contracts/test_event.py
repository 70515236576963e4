from __future__ import annotations

import msgspec
import pytest

from muxflow.contracts import JobAccepted, JobCancel, JobSubmit, complete, decode, encode
from muxflow.contracts.examples import example
from muxflow.contracts.schemas import CONTRACTS, Contract

each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


def test_what_a_plain_client_left_out_is_filled_in() -> None:
    event = complete(JobCancel(reason="enough"), id="7", source="plain", time_ns=5)
    assert event == JobCancel(id="7", source="plain", time_ns=5, reason="enough")


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (JobCancel(id="own"), JobCancel(id="own", source="server", time_ns=5)),
        (JobCancel(source="own"), JobCancel(id="7", source="own", time_ns=5)),
        (JobCancel(time_ns=1), JobCancel(id="7", source="server", time_ns=1)),
        (JobCancel(id="own", source="own", time_ns=1), JobCancel(id="own", source="own", time_ns=1)),
    ],
)
def test_what_the_publisher_gave_is_kept(given: JobCancel, completed: JobCancel) -> None:
    assert complete(given, id="7", source="server", time_ns=5) == completed


@each_contract
def test_what_is_encoded_is_decoded(contract: Contract) -> None:
    event = example(contract.kind)
    assert msgspec.json.decode(encode(event), type=contract.kind) == event


def test_equal_events_have_equal_bytes() -> None:
    one = decode(b'{"spec":{"command":["x"],"gpu":{"memory_bytes":1},"env":{"A":"1","B":"2"}}}', JobSubmit)
    other = decode(b'{"spec":{"env":{"B":"2","A":"1"},"gpu":{"memory_bytes":1},"command":["x"]}}', JobSubmit)
    assert encode(one) == encode(other)


@each_contract
def test_fields_that_a_reader_does_not_know_are_ignored(contract: Contract) -> None:
    event = example(contract.kind)
    assert msgspec.json.decode(msgspec.json.encode(_with_news(event)), type=contract.kind) == event


def _with_news(value: object) -> object:
    """Add a field of a later version to every struct in a value; maps have free keys and stay."""
    if isinstance(value, msgspec.Struct):
        fields = {name: _with_news(getattr(value, name)) for name in value.__struct_fields__}
        return {**fields, "added_in_version_9": {"any": ["thing"]}}
    return [_with_news(item) for item in value] if isinstance(value, tuple) else value


def test_a_missing_field_is_named() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"memory_bytes.*`\$\.spec\.gpu`"):
        decode(b'{"spec":{"command":["x"],"gpu":{}}}', JobSubmit)


def test_what_is_not_json_is_told_apart_from_what_is_not_the_event() -> None:
    with pytest.raises(msgspec.DecodeError) as error:
        decode(b"\xff", JobAccepted)
    assert not isinstance(error.value, msgspec.ValidationError)
