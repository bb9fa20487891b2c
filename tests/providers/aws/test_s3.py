"""What only S3 has: parts of large objects, checksums, encryption, and buckets of an account."""

import base64
import hashlib
import io

import pytest

from polyserve.driver import ErrorCode, PutAttributes
from polyserve_aws import parts, s3
from polyserve_aws.clients import Clients
from polyserve_aws.errors import BucketNotEmptyError
from polyserve_aws.settings import AwsSettings

MIB = 1 << 20
CONTENT = bytes(range(256)) * (20 * MIB // 256) + b"tail"


@pytest.fixture
def store(aws, bucket):
    # boto3's own calls are looked at here; what goes through obstore has `test_transfers.py`.
    return s3.S3Store(aws.provider()._clients, AwsSettings(fast_transfers=False), bucket)


@pytest.fixture
def calls(aws):
    """Give the names of the operations that are called, with their parameters."""
    client = aws.provider()._clients.get("s3")
    seen = []

    def note(params, model, **_):
        seen.append((model.name, params))

    client.meta.events.register("provide-client-params.s3", note)
    yield seen
    client.meta.events.unregister("provide-client-params.s3", note)


def unfinished(aws, bucket):
    return aws.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])


@pytest.mark.parametrize("seekable", [True, False], ids=["file", "pipe"])
def test_a_large_object_goes_up_in_parts_and_is_whole(aws, bucket, store, calls, seekable):
    body = io.BytesIO(CONTENT)
    body.seekable = lambda: seekable

    meta = store.put("large", body, attrs=PutAttributes(content_type="image/png", metadata={"a": "b"}))

    raw = aws.raw_get(bucket, "large")
    assert raw.body == CONTENT
    assert (raw.content_type, raw.metadata) == ("image/png", {"a": "b"})
    assert (meta.size, meta.version) == (len(CONTENT), store.head("large").version)
    assert [name for name, _ in calls].count("UploadPart") == 3
    assert all(params["ChecksumAlgorithm"] == "CRC32" for name, params in calls if name == "UploadPart")
    assert unfinished(aws, bucket) == []


@pytest.mark.parametrize(
    ("attrs", "condition"),
    [(PutAttributes(if_absent=True), {"IfNoneMatch": "*"}), (PutAttributes(if_match="e"), {"IfMatch": '"e"'})],
)
def test_conditions_of_a_large_object_go_with_the_call_that_ends_it(store, calls, attrs, condition):
    store.put("k", io.BytesIO(CONTENT), attrs=attrs)

    # moto takes them and does not look at them; S3 does, since November 2024.
    (last,) = [params for name, params in calls if name == "CompleteMultipartUpload"]
    assert condition.items() <= last.items()


def test_a_body_that_breaks_off_leaves_no_parts_behind(aws, bucket, store):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            return self.unless_broken(super().read, size)

        def readinto(self, buffer):
            return self.unless_broken(super().readinto, buffer)

        def unless_broken(self, read, what):
            if self.tell() > 10 * MIB:
                raise OSError("the disk is gone")
            return read(what)

    with pytest.raises(OSError, match="the disk is gone"):
        store.put("large", Broken(CONTENT), attrs=PutAttributes())

    assert aws.raw_list(bucket) == []
    assert unfinished(aws, bucket) == []


def test_the_digest_of_the_core_is_compared_by_s3(aws, store, calls):
    digest = hashlib.sha256(b"content").hexdigest()
    store.put("k", io.BytesIO(b"content"), attrs=PutAttributes(metadata={"sha256": digest}))
    sent = next(params for name, params in calls if name == "PutObject")

    with pytest.raises(Exception) as raised:  # noqa: PT011 - as above
        store.put("k", io.BytesIO(b"changed"), attrs=PutAttributes(metadata={"sha256": digest}))

    assert base64.b64decode(sent["ChecksumSHA256"]).hex() == digest
    assert aws.provider().classify(raised.value) in {ErrorCode.UNAVAILABLE, ErrorCode.INVALID_ARGUMENT}
    assert store.get("k")[1].read() == b"content"


def test_objects_are_encrypted_with_the_key_that_is_given(aws, bucket, calls):
    key = "arn:aws:kms:us-east-1:123456789012:key/k"
    clients = aws.provider()._clients
    store = s3.S3Store(clients, AwsSettings(kms_key_id=key), bucket)

    store.put("small", io.BytesIO(b"1"), attrs=PutAttributes())
    store.put("large", io.BytesIO(CONTENT), attrs=PutAttributes())
    store.copy("small", "copy")

    sent = {name: params for name, params in calls if name in {"PutObject", "CreateMultipartUpload", "CopyObject"}}
    assert len(sent) == 3
    assert all((each["ServerSideEncryption"], each["SSEKMSKeyId"]) == ("aws:kms", key) for each in sent.values())


def test_a_copy_over_the_limit_of_one_request_goes_in_parts(aws, bucket, store, calls, monkeypatch):
    monkeypatch.setattr(s3, "LARGEST_COPY", 5 * MIB)
    monkeypatch.setattr(parts, "COPIED_PART_BYTES", 8 * MIB)
    aws.raw_put(bucket, "large", store_value(CONTENT))

    meta = store.copy("large", "copy")

    assert aws.raw_get(bucket, "copy").body == CONTENT
    assert aws.raw_get(bucket, "copy").metadata == {"author": "me"}
    assert meta.version == store.head("copy").version
    assert [name for name, _ in calls].count("UploadPartCopy") == 3


def store_value(body):
    from polyserve.testing.harness import RawObject

    return RawObject(body=body, content_type="image/png", metadata={"author": "me"})


@pytest.mark.parametrize("delimiter", [".", " ", "A", "b."])
def test_a_delimiter_that_escapes_are_made_of_rolls_up_all_the_same(aws, bucket, store, delimiter):
    keys = ["a", "a.b", "a.c", ".a", "b .", "b A", "bAc", "bAd", "c b.d", "c b.e", "\x01", "z "]
    for key in keys:
        aws.raw_put(bucket, key, store_value(b""))
    expected = {f"{key.partition(delimiter)[0]}{delimiter}" if delimiter in key else key for key in keys}
    for limit in (1, 2, 100):
        found, token = [], None
        while True:
            page = store.list_page(prefix="", delimiter=delimiter, token=token, limit=limit)
            assert len(page.objects) + len(page.prefixes) <= limit
            found += [*(meta.key for meta in page.objects), *page.prefixes]
            token = page.next_token
            if token is None:
                break

        assert len(found) == len(expected)
        assert set(found) == expected


def test_a_bucket_is_made_in_its_region_and_one_of_somebody_else_is_told(aws):
    clients = Clients(AwsSettings(**{**aws.options, "region": "eu-central-1"}))
    s3.ensure_bucket(clients, "contract-in-frankfurt")
    s3.ensure_bucket(clients, "contract-in-frankfurt")

    place = aws.client("s3").get_bucket_location(Bucket="contract-in-frankfurt")["LocationConstraint"]
    s3.remove_bucket(clients, "contract-in-frankfurt")
    clients.close()

    assert place == "eu-central-1"


def test_removing_a_bucket_ends_uploads_that_were_never_finished(aws):
    client = aws.client("s3")
    client.create_bucket(Bucket="contract-unfinished")
    client.create_multipart_upload(Bucket="contract-unfinished", Key="k")
    client.put_object(Bucket="contract-unfinished", Key="k", Body=b"")
    clients = aws.provider()._clients

    with pytest.raises(BucketNotEmptyError):
        s3.remove_bucket(clients, "contract-unfinished")
    client.delete_object(Bucket="contract-unfinished", Key="k")
    s3.remove_bucket(clients, "contract-unfinished")

    assert "contract-unfinished" not in [each["Name"] for each in client.list_buckets()["Buckets"]]
