from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import BUCKETS, DURABLES, STREAMS, SUBJECTS, Bucket, Durable, Role, Subject, catalogue
from muxflow.contracts.asyncapi import covers
from muxflow.contracts.catalogue import JOBS_SUBMIT, stream_of, subject_of

each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
each_durable = pytest.mark.parametrize("durable", DURABLES, ids=lambda durable: f"{durable.stream}-{durable.name}")
names = st.text(min_size=1, max_size=20)


def concrete(subject: Subject) -> str:
    return subject.of(**dict.fromkeys(subject.placeholders, "any"))


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.*", True),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        (">", "a.b.c", True),
        ("a.*.>", "a.b.c.d", True),
        ("a.b", "a.c", False),
        ("a.b", "a.*", False),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a", False),
        ("a.>", "b.c", False),
        ("a.*.>", "a.b", False),
    ],
)
def test_patterns_cover_as_in_nats(pattern: str, subject: str, covered: bool) -> None:
    assert covers(pattern, subject) is covered


@each_subject
def test_a_subject_is_kept_by_the_one_stream_it_names(subject: Subject) -> None:
    keepers = [
        stream.name for stream in STREAMS if any(covers(pattern, subject.pattern()) for pattern in stream.subjects)
    ]
    assert keepers == ([subject.stream] if subject.stream else [])


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_a_stream_keeps_some_subject_by_each_of_its_patterns(stream: catalogue.Stream) -> None:
    for pattern in stream.subjects:
        if pattern != catalogue.MAX_DELIVERIES_ADVISORY:
            assert any(covers(pattern, concrete(subject)) for subject in SUBJECTS), pattern


def test_no_message_belongs_to_two_kinds_of_subject() -> None:
    for one, other in itertools.combinations(SUBJECTS, 2):
        tokens = itertools.zip_longest(one.pattern().split("."), other.pattern().split("."))
        assert not all(a == b or (a and b and "*" in (a, b)) for a, b in tokens), f"{one.name} and {other.name}"


@each_subject
def test_a_short_name_is_the_fixed_part_of_the_subject(subject: Subject) -> None:
    assert subject.template == ".".join(["muxflow", subject.name, *(f"{{{name}}}" for name in subject.placeholders)])


@each_subject
@given(data=st.data())
def test_a_template_gives_back_the_names_it_was_made_of(subject: Subject, data: st.DataObject) -> None:
    given_names = {name: data.draw(names) for name in subject.placeholders}
    made = subject.of(**given_names)
    assert subject.parse(made) == given_names
    assert subject_of(made) is subject
    assert covers(subject.pattern(), made)


@each_subject
def test_a_subject_wants_all_its_names(subject: Subject) -> None:
    with pytest.raises(KeyError):
        subject.of()


def test_a_pattern_is_bound_to_the_names_given() -> None:
    assert JOBS_SUBMIT.pattern(tenant="team.a") == "muxflow.jobs.submit.team=2Ea.*"


@pytest.mark.parametrize(
    "subject", ["muxflow.jobs.submit.default", "muxflow.jobs.submit.default.x.y", "muxflow.jobs.submit.a.=41", "x"]
)
def test_a_foreign_subject_is_of_no_kind(subject: str) -> None:
    assert subject_of(subject) is None
    with pytest.raises(ValueError, match="not"):
        JOBS_SUBMIT.parse(subject)


@each_durable
def test_a_durable_reads_only_what_its_role_may_read(durable: Durable) -> None:
    for pattern in durable.filters:
        covered = [subject for subject in SUBJECTS if covers(pattern, subject.pattern())]
        assert covered, f"{pattern} covers nothing"
        for subject in covered:
            assert subject.stream == durable.stream
            assert durable.role in subject.readers


@each_durable
def test_a_durable_waits_long_enough_to_give_a_message_another_try(durable: Durable) -> None:
    assert durable.ack_wait_s > 0
    assert durable.max_deliver > 1


def test_durables_have_names_of_their_own_within_a_stream() -> None:
    assert len({(durable.stream, durable.name) for durable in DURABLES}) == len(DURABLES)


def test_every_role_that_speaks_on_the_bus_has_a_row() -> None:
    seen = {role for subject in SUBJECTS for role in (*subject.publishers, *subject.readers)}
    assert seen == set(Role) - {Role.PROVISIONER}


@each_subject
def test_somebody_publishes_and_somebody_reads(subject: Subject) -> None:
    assert subject.publishers
    assert subject.readers
    assert Role.PROVISIONER not in (*subject.publishers, *subject.readers)


@each_subject
def test_only_questions_have_answers_and_nobody_keeps_them(subject: Subject) -> None:
    assert (subject.reply is not None) == subject.name.startswith("query.")
    assert subject.reply is None or subject.stream is None


def test_the_table_holds_every_subject_once() -> None:
    defined = {value.name for value in vars(catalogue).values() if isinstance(value, Subject)}
    assert sorted(subject.name for subject in SUBJECTS) == sorted(defined)


@each_subject
def test_the_stream_of_a_subject_is_found(subject: Subject) -> None:
    stream = stream_of(subject)
    assert (stream.name if stream else None) == subject.stream


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.name)
def test_a_bucket_has_a_legal_name_and_keys_made_of_placeholders(bucket: Bucket) -> None:
    assert re.fullmatch(r"[a-z_]+", bucket.name)
    assert all(re.fullmatch(r"\{[a-z]+\}", token) for token in bucket.key.split("."))
    assert bucket.writer not in bucket.readers
