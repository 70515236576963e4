from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts.names import JOB_NAME_PATTERN, decode_token, encode_token

KV_KEY = re.compile(r"[-/_=a-zA-Z0-9]+")  # without the dot, which separates tokens

names = st.text(min_size=1)


@given(names)
def test_what_is_encoded_comes_back(name: str) -> None:
    assert decode_token(encode_token(name)) == name


@given(names)
def test_an_encoded_name_is_legal_in_subjects_and_keys(name: str) -> None:
    assert KV_KEY.fullmatch(encode_token(name))


@given(names, names)
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(st.text())
def test_a_token_is_refused_or_is_the_one_that_its_name_encodes_to(token: str) -> None:
    try:
        name = decode_token(token)
    except ValueError:
        return
    assert encode_token(name) == token


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "not an encoded name"),
        ("a.b", "not an encoded name"),
        ("*", "not an encoded name"),
        (">", "not an encoded name"),
        ("a b", "not an encoded name"),
        ("a\n", "not an encoded name"),
        ("=2", "not an encoded name"),
        ("=2e", "not an encoded name"),
        ("é", "not an encoded name"),
        ("=41", "not the canonical encoding of 'A'"),
        ("=2D", "not the canonical encoding of '-'"),
        ("=FF", "invalid start byte"),
        ("=C0=AF", "invalid start byte"),
    ],
)
def test_what_the_encoder_cannot_have_made_is_refused(token: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode_token(token)


def test_an_empty_name_has_no_token() -> None:
    with pytest.raises(ValueError, match="empty"):
        encode_token("")


def test_a_lone_surrogate_has_no_token() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_token("\ud800")


def test_ordinary_names_stay_readable() -> None:
    assert encode_token("GPU-3f2b8c1e_7") == "GPU-3f2b8c1e_7"
    assert encode_token("gpu-7.rack2") == "gpu-7=2Erack2"


@pytest.mark.parametrize("name", ["a", "0", "resnet50.v2_final-1", "x" * 128])
def test_a_good_job_name_is_taken(name: str) -> None:
    assert re.search(JOB_NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", "-a", "a-", ".", "_all", "a b", "a/b", "é", "a\n", "x" * 129])
def test_a_bad_job_name_is_refused(name: str) -> None:
    assert not re.search(JOB_NAME_PATTERN, name)
