"""Names of images are read as every container tool reads them."""

import pytest

from polyserve.bundle.references import Reference, is_loopback, parse
from polyserve.errors import InvalidArgumentError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag"),
    [
        ("python", "docker.io", "library/python", "latest"),
        ("python:3.11-slim", "docker.io", "library/python", "3.11-slim"),
        ("someone/model", "docker.io", "someone/model", "latest"),
        ("localhost/model:1", "localhost", "model", "1"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        ("public.ecr.aws/lambda/python:3.11", "public.ecr.aws", "lambda/python", "3.11"),
        ("europe-docker.pkg.dev/project/repo/model", "europe-docker.pkg.dev", "project/repo/model", "latest"),
    ],
)
def test_a_reference_is_read_as_host_repository_and_tag(text, host, repository, tag):
    assert parse(text) == Reference(host=host, repository=repository, tag=tag)


def test_a_digest_is_what_the_manifest_is_asked_for_by():
    found = parse(f"example.com/model:1@{DIGEST}")

    assert (found.manifest, found.tag) == (DIGEST, "1")
    assert str(found) == f"example.com/model@{DIGEST}"
    assert parse(str(found)) == Reference(host="example.com", repository="model", digest=DIGEST)


def test_the_hub_answers_under_another_name():
    assert parse("python").address == "registry-1.docker.io"
    assert parse("example.com/python").address == "example.com"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no repository"),
        ("Model", "is no repository"),
        ("example.com/a//b", "is no repository"),
        ("example.com/a:ta g", "is no tag"),
        ("example.com/a@sha256:12", "is no digest"),
        ("exa mple.com/a", "is no host"),
        ("example.com/" + "a" * 256, "255 characters at most"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(text, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.9.9.9:1", True),
        ("[::1]:5000", True),
        ("example.com", False),
    ],
)
def test_only_this_machine_is_spoken_to_in_plain(host, here):
    assert is_loopback(host) is here
