"""S3 as boto3 uses it: large objects, ranges, conditions, checksums."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError


def test_a_large_object_comes_back_as_it_went(account, bucket):
    data = os.urandom(12 * 2**20)
    settings = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    s3, target = account.client("s3"), io.BytesIO()
    s3.upload_fileobj(io.BytesIO(data), bucket, "large", Config=settings)
    s3.download_fileobj(bucket, "large", target, Config=settings)
    whole = s3.get_object(Bucket=bucket, Key="large")["Body"].read()

    assert hashlib.sha256(target.getvalue()).digest() == hashlib.sha256(data).digest()
    assert whole == data


@pytest.mark.parametrize(
    ("wanted", "expected", "told"),
    [("bytes=2-4", b"234", "bytes 2-4/10"), ("bytes=7-", b"789", "bytes 7-9/10"), ("bytes=-2", b"89", "bytes 8-9/10")],
)
def test_a_range_is_that_part(account, bucket, wanted, expected, told):
    s3 = account.client("s3")
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    found = s3.get_object(Bucket=bucket, Key="k", Range=wanted)

    assert (found["Body"].read(), found["ContentRange"], found["ContentLength"]) == (expected, told, len(expected))


def test_a_range_beyond_the_end_is_refused(account, bucket):
    s3 = account.client("s3")
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")

    with pytest.raises(ClientError, match="InvalidRange"):
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=10-")


def test_conditions_hold(account, bucket):
    s3 = account.client("s3")
    tag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]

    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch='"' + "0" * 32 + '"')
    with pytest.raises(ClientError, match=r"PreconditionFailed|412"):
        s3.get_object(Bucket=bucket, Key="k", IfMatch='"' + "0" * 32 + '"')
    s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=tag)

    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2"


@pytest.mark.parametrize(
    "field", [{"ContentMD5": "A" * 22 + "=="}, {"ChecksumCRC32": "AAAAAA=="}, {"ChecksumSHA256": "A" * 43 + "="}]
)
def test_bytes_that_are_not_what_the_sender_says_are_refused(account, bucket, field):
    with pytest.raises(ClientError, match="BadDigest"):
        account.client("s3").put_object(Bucket=bucket, Key="k", Body=b"something", **field)


@pytest.mark.parametrize(
    "key", ["a b", "ä/ö", "a+b", "a%2Fb", "double//slash", "ends/", "q?x=1&y", "#hash", "日本", "a'b(c)*!~"]
)
def test_any_key_is_a_key(account, bucket, key):
    s3 = account.client("s3")
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode(), Metadata={"my_note": "kept"})
    found = s3.get_object(Bucket=bucket, Key=key)
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]

    assert (found["Body"].read(), found["Metadata"], listed) == (key.encode(), {"my_note": "kept"}, [key])


def test_of_many_conditional_writes_at_once_one_wins(account, bucket):
    s3 = account.client("s3")

    def write(number):
        try:
            s3.put_object(Bucket=bucket, Key="lock", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            return error.response["Error"]["Code"]
        return number

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, range(32)))
    winners = [one for one in found if isinstance(one, int)]

    assert len(winners) == 1
    assert s3.get_object(Bucket=bucket, Key="lock")["Body"].read() == str(winners[0]).encode()


def test_what_is_known_of_a_large_object_is_true_of_it(account, bucket):
    s3 = account.client("s3")
    settings = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    s3.upload_fileobj(io.BytesIO(bytes(6 * 2**20)), bucket, "large", Config=settings)
    known = s3.head_object(Bucket=bucket, Key="large", ChecksumMode="ENABLED")

    assert (known["ContentLength"], known["ChecksumType"]) == (6 * 2**20, "COMPOSITE")
    assert known["ChecksumCRC32"].endswith("-2")
