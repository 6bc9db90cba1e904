"""What is common to all that lies in a bucket: addresses, and what no message may show."""

from __future__ import annotations

import httpx
import pytest

from distributed_training.services.retry import Transient
from distributed_training.services.s3 import Place, Refusal, S3Connection, read_place
from template.clock import SystemClock
from template.errors import SubnetError


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("s3://bucket", Place("bucket", "")),
        ("s3://bucket/", Place("bucket", "")),
        ("s3://bucket/a/b", Place("bucket", "a/b")),
        ("s3://bucket/a/b/", Place("bucket", "a/b")),
        ("s3://", None),
        ("s3://ab", None),
        ("s3://UPPER/x", None),
        ("s3:///x", None),
        ("https://bucket/x", None),
    ],
)
def test_an_address_names_a_place_or_none(address: str, place: Place | None) -> None:
    """Bucket and prefix, the same for a corpus and for a hub."""
    assert read_place(address) == place


def test_a_place_is_written_as_it_is_read() -> None:
    """With and without a prefix, and its objects have the prefix before them."""
    for place in (Place("bucket", ""), Place("bucket", "a/b")):
        assert read_place(place.url) == place
    assert (Place("bucket", "a").key("x"), Place("bucket", "").key("x")) == ("a/x", "x")


def refused(refusal: Refusal) -> SubnetError:
    return SubnetError(f"{refusal.status}|{refusal.code}|{refusal.reason}")


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> S3Connection:
    """One with credentials, to nobody."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
    for name, value in (("ACCESS_KEY_ID", "AKIAKEY"), ("SECRET_ACCESS_KEY", "hidden"), ("SESSION_TOKEN", "passing")):
        monkeypatch.setenv(f"AWS_{name}", value)
    nobody = "http://127.0.0.1:9"
    return S3Connection("s3://bucket", endpoint=nobody, region=None, connect=2, idle=2, clock=SystemClock())


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        (503, "SlowDown", True),
        (429, "", True),
        (409, "ConditionalRequestConflict", True),
        (400, "BadDigest", True),
        (400, "InvalidRequest", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (412, "PreconditionFailed", False),
    ],
)
def test_an_error_is_worth_another_try_or_is_final(
    connection: S3Connection, status: int, code: str, transient: bool
) -> None:
    """By its status, or by the code of a body that was damaged on its way; the wait that is asked for is kept."""
    body = f"<Error><Code>{code}</Code></Error>".encode()
    answer = httpx.Response(status, headers={"retry-after": "7"}, stream=httpx.ByteStream(body))
    failure = connection.failure_of(answer, refused, "it")
    if transient:
        assert isinstance(failure, Transient)
        assert failure.retry_after == 7.0
    else:
        assert str(failure) == f"{status}|{code}|HTTP {status} {code} for it"


def test_a_bucket_elsewhere_is_asked_there(connection: S3Connection) -> None:
    """S3 says in which region a bucket lies: the next try is signed for that one. A name that is none is not taken."""
    malformed = b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"
    for status, region, body in ((301, "eu-north-1", b""), (400, "us-west-2", malformed)):
        answer = httpx.Response(status, headers={"x-amz-bucket-region": region}, stream=httpx.ByteStream(body))
        assert str(connection.failure_of(answer, refused)) == f"the bucket lies in {region}"
        assert f"/{region}/s3/" in connection.signature(f"{connection.base(Place('bucket', ''))}x")["Authorization"]
    answer = httpx.Response(301, headers={"x-amz-bucket-region": "host.example/"}, stream=httpx.ByteStream(b""))
    assert str(connection.failure_of(answer, refused)) == "301||HTTP 301"


def test_nobody_there_is_worth_another_try(connection: S3Connection) -> None:
    """And nothing is chained to the error: the request behind it holds a signature."""
    with pytest.raises(Transient, match=r"s3://bucket: EndpointConnectionError") as caught:
        connection.call(lambda: connection.client.get_object(Bucket="bucket", Key="a"), refused)
    assert caught.value.__context__ is None


def test_a_line_shows_no_credential(connection: S3Connection) -> None:
    """Key, secret and session token are struck out; line ends are gone."""
    assert connection.line("AKIAKEY says\n hidden  and passing") == "*** says *** and ***"


def test_only_who_has_credentials_signs(connection: S3Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature names the key and never holds the secret; a stranger sends none."""
    address = f"{connection.base(Place('bucket', 'a b'))}c"
    assert address == "http://127.0.0.1:9/bucket/a%20b/c"
    signed = connection.signature(address)
    assert "Credential=AKIAKEY/" in signed["Authorization"]
    assert "hidden" not in str(signed)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    stranger = S3Connection("s3://bucket", endpoint=None, region=None, connect=2, idle=2, clock=SystemClock())
    assert stranger.anonymous
    assert stranger.signature(address) == {}
    for one in (connection, stranger):
        one.close()
