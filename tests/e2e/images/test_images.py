"""Images without a daemon: pushed to real registries and to a strict one, read back, pushed again without sending a byte twice."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sklearn.tree import DecisionTreeClassifier

from polyserve.bundle import build
from polyserve.bundle.image import CONFIG_TYPE, Image, ImageConfig, layered, layers_of, make, resolve
from polyserve.bundle.layers import layer
from polyserve.bundle.publishing import Sending, push, write_layout
from polyserve.bundle.references import Reference, parse
from polyserve.bundle.registry import Blob, Manifest, Registry
from polyserve.bundle.registry_auth import Credentials
from polyserve.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from polyserve.model import package
from polyserve.registry import info as info_of
from polyserve.runtime.host import Host

SKOPEO, REGISTRY = shutil.which("skopeo"), shutil.which("docker-registry")
USER, PASSWORD = "deployer", "open sesame"
ME = Credentials(username=USER, password=PASSWORD)
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = ImageConfig(cmd=("polyserve_entrypoint.handler",), environment={"A": "1"}, working_dir="/var/task")
CONTENTS: dict[str, dict[str, Path | bytes]] = {
    "package": {"package/manifest.json": b"{}", "package/model/m.bin": b"m" * 100_000},
    "runtime": {"polyserve/__init__.py": b"", "polyserve/runtime/host.py": b"# host"},
    "entrypoint": {"polyserve_entrypoint.py": b"# handler"},
    "dependencies": {f"lib/{number}.so": hashlib.sha256(bytes([number])).digest() * 40_000 for number in range(3)},
}


def image(contents: dict[str, dict[str, Path | bytes]] = CONTENTS, **options: Any) -> Image:
    return make(layered(contents, root="/var/task"), CONFIG, **({"architecture": "x86_64"} | options))


def push_base(registry: Registry, reference: Reference) -> None:
    """Push an image for two architectures under one tag, with what else indexes have in the wild."""
    described = []
    for architecture in ("arm64", "x86_64"):
        files: dict[str, Path | bytes] = {"bin/python": b"p" * 50_000, "arch": architecture.encode()}
        config = ImageConfig(entrypoint=("/bin/python",), cmd=("-i",), environment={"A": "0", "PATH": "/bin"})
        made = make([layer("system", files)], config, architecture=architecture)
        push(made, registry, Reference(host=reference.host, repository=reference.repository, tag=architecture))
        described.append(made.descriptor)
    attestation = {**described[0], "platform": {"architecture": "unknown", "os": "unknown"}}
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [attestation, *described]}).encode()
    index = Manifest(media_type=INDEX, body=body, digest=f"sha256:{hashlib.sha256(body).hexdigest()}")
    registry.put_manifest(reference.repository, reference.tag, index)


def states(sendings: list[Sending]) -> dict[str, str]:
    """Return the last state of every part."""
    return {each.what: each.state for each in sendings}


# --- whoever runs the registry --------------------------------------------------------------------------------------


def test_an_image_is_pushed_and_found_again_by_tag_and_by_digest(place):
    made, target = image(), parse(f"{place.host}/models/digits:1")
    with Registry(place.host, credentials=place.credentials) as registry:
        pushed = push(made, registry, target)

        assert pushed.digest == made.digest
        for reference in (target, pushed):
            found = resolve(registry, reference, architecture="x86_64")
            assert found.digest == made.digest
            assert [each["digest"] for each in found.layers] == [each.digest for each in made.layers]
        body = b"".join(registry.stream_blob("models/digits", made.layers[-1].digest))
    with tarfile.open(fileobj=io.BytesIO(body), mode="r:gz") as archive:
        assert archive.extractfile("var/task/package/model/m.bin").read() == b"m" * 100_000


def test_pushing_again_sends_nothing(place):
    made, target = image(), parse(f"{place.host}/models/digits:1")
    first, second = list[Sending](), list[Sending]()
    with Registry(place.host, credentials=place.credentials) as registry:
        push(made, registry, target, told=first.append)
        push(made, registry, target, told=second.append)

    assert states(first) == dict.fromkeys(
        ["dependencies", "runtime and entrypoint", "package", "configuration"], "sent"
    )
    assert states(second) == dict.fromkeys(states(first), "present")


def test_another_model_sends_the_layer_of_the_package_only(place):
    other = {**CONTENTS, "package": {"package/manifest.json": b"{ }", "package/model/m.bin": b"n" * 100_000}}
    sendings = list[Sending]()
    with Registry(place.host, credentials=place.credentials) as registry:
        push(image(), registry, parse(f"{place.host}/models/digits:1"))
        push(image(other), registry, parse(f"{place.host}/models/digits:2"), told=sendings.append)

    assert states(sendings) == {
        "dependencies": "present",
        "runtime and entrypoint": "present",
        "package": "sent",
        "configuration": "sent",
    }


def test_an_image_upon_a_base_takes_its_layers_over_within_the_registry(place):
    sendings = list[Sending]()
    with Registry(place.host, credentials=place.credentials) as registry:
        push_base(registry, parse(f"{place.host}/public/python:3.11"))
        base = resolve(registry, parse(f"{place.host}/public/python:3.11"), architecture="x86_64")
        target = parse(f"{place.host}/models/digits:1")
        made = image(base=base)
        push(made, registry, target, told=sendings.append)
        found = resolve(registry, target, architecture="x86_64")

    assert states(sendings)[f"base {base.layers[0]['digest'][7:19]}"] == "mounted"
    assert found.config["config"] == {
        "Entrypoint": ["/bin/python"],
        "Cmd": ["polyserve_entrypoint.handler"],
        "Env": ["PATH=/bin", "A=1"],
        "WorkingDir": "/var/task",
    }
    assert len(found.layers) == len(found.config["rootfs"]["diff_ids"]) == len(found.config["history"]) == 4


def test_a_blob_in_pieces_arrives_whole(place):
    body = bytes(range(256)) * 20_000
    blob = Blob(digest=f"sha256:{hashlib.sha256(body).hexdigest()}", size=len(body), open=lambda: io.BytesIO(body))
    told = list[int]()
    with Registry(place.host, credentials=place.credentials, chunk_bytes=2_000_000) as registry:
        registry.push_blob("models/large", blob, told.append)

        assert b"".join(registry.stream_blob("models/large", blob.digest)) == body
    assert told == sorted(told)
    assert told[-1] == len(body)


def test_a_wrong_password_is_told_and_never_shown(place):
    wrong = Credentials(username=USER, password="guess me")

    with Registry(place.host, credentials=wrong) as registry, pytest.raises(UnauthenticatedError) as caught:
        push(image(), registry, parse(f"{place.host}/models/digits:1"))

    assert place.host in str(caught.value)
    assert "other credentials" in str(caught.value)
    assert "guess me" not in str(caught.value) + repr(wrong)


def test_an_image_that_is_not_there_is_not_found(place):
    with (
        Registry(place.host, credentials=place.credentials) as registry,
        pytest.raises(NotFoundError, match="models/no"),
    ):
        resolve(registry, parse(f"{place.host}/models/no:1"), architecture="x86_64")


def test_the_image_of_a_bundle_has_every_file_of_it(place, tmp_path):
    model = DecisionTreeClassifier(random_state=0).fit([[0.0], [1.0]], [0, 1])
    made = package(model, name="tree", sample=[[0.0], [1.0]])
    info = info_of("local")
    bundle = build(made, info, python=made.manifest.python, architecture="x86_64")
    target = parse(f"{place.host}/models/tree:1")
    with Registry(place.host, credentials=place.credentials) as registry:
        push(make(layers_of(bundle, info, root="/var/task"), CONFIG, architecture="x86_64"), registry, target)
        for each in resolve(registry, target, architecture="x86_64").layers:
            body = b"".join(registry.stream_blob("models/tree", each["digest"]))
            with tarfile.open(fileobj=io.BytesIO(body), mode="r:gz") as archive:
                archive.extractall(tmp_path / "image", filter="data")

    root = tmp_path / "image/var/task"
    with zipfile.ZipFile(bundle.path) as archive:
        assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(
            archive.namelist()
        )
    host = Host(root / "package", sink=lambda lines: None)
    host.load()
    assert made.difference(host.handle(made.golden_request())) is None


# --- what other tools make of it ------------------------------------------------------------------------------------


def test_a_directory_in_the_image_layout_has_the_whole_image(tmp_path, strict):
    with Registry(strict.host) as registry:
        push_base(registry, parse(f"{strict.host}/public/python:3.11"))
        base = resolve(registry, parse(f"{strict.host}/public/python:3.11"), architecture="arm64")
        made = image(base=base, architecture="arm64")
        for tag in ("1", "2", "1"):
            write_layout(made, tmp_path / "layout", tag=tag, source=registry)

    root = tmp_path / "layout"
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    tags = [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]
    assert sorted(tags) == ["1", "2"]
    for path in (root / "blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    manifest = json.loads((root / "blobs/sha256" / made.digest[7:]).read_bytes())
    assert manifest["config"]["mediaType"] == CONFIG_TYPE
    for each, diff_id in zip(
        manifest["layers"],
        json.loads((root / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())["rootfs"]["diff_ids"],
        strict=True,
    ):
        body = (root / "blobs/sha256" / each["digest"][7:]).read_bytes()
        assert len(body) == each["size"]
        assert f"sha256:{hashlib.sha256(gzip.decompress(body)).hexdigest()}" == diff_id


def skopeo(*arguments: str) -> Any:
    assert SKOPEO is not None
    done = subprocess.run([SKOPEO, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if arguments[0] == "inspect" else done.stdout


# Tools of Debian that no Python environment brings: `apt-get install docker-registry skopeo`. Where they are, these tests are; what they
# prove of the bytes, the tests around them prove by our own reading of the specifications.
if SKOPEO and REGISTRY:

    def test_skopeo_reads_what_was_pushed(real):
        made, target = image(), parse(f"{real.host}/models/digits:1")
        with Registry(real.host, credentials=real.credentials) as registry:
            push(made, registry, target)

        seen = skopeo("inspect", "--tls-verify=false", f"--creds={USER}:{PASSWORD}", f"docker://{target}")

        assert seen["Digest"] == made.digest
        assert seen["Layers"] == [each.digest for each in made.layers]
        assert (seen["Architecture"], seen["Os"], seen["Env"]) == ("amd64", "linux", ["A=1"])

    def test_skopeo_copies_the_layout_to_a_registry_as_the_image_that_we_push(real, tmp_path):
        made, target = image(), f"{real.host}/models/copied:1"
        write_layout(made, tmp_path / "layout", tag="1")
        layout = f"oci:{tmp_path / 'layout'}:1"

        assert skopeo("inspect", layout)["Digest"] == made.digest
        options = ["--insecure-policy", "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}"]
        skopeo("copy", *options, layout, f"docker://{target}")
        with Registry(real.host, credentials=real.credentials) as registry:
            assert resolve(registry, parse(target), architecture="x86_64").digest == made.digest


# --- what only a registry does that can be told to ------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["", "basic", "bearer"])
def test_whatever_a_registry_asks_for_is_given(strict, auth):
    strict.auth = auth
    with Registry(strict.host, credentials=ME) as registry:
        pushed = push(image(), registry, parse(f"{strict.host}/models/digits:1"))

    assert strict.repositories["models/digits"].tags == {"1": pushed.digest}


def test_what_is_public_can_be_read_without_credentials_and_not_written(strict):
    with Registry(strict.host) as registry:
        push_base(registry, parse(f"{strict.host}/public/python:3.11"))
    strict.auth = "bearer"

    with Registry(strict.host) as registry:
        assert resolve(registry, parse(f"{strict.host}/public/python:3.11"), architecture="arm64").layers
        with pytest.raises(UnauthenticatedError):
            push(image(), registry, parse(f"{strict.host}/public/python:mine"))


def test_the_manifest_goes_last(strict):
    with Registry(strict.host) as registry:
        push(image(), registry, parse(f"{strict.host}/models/digits:1"))

    assert strict.asked[-1] == ("PUT", "/v2/models/digits/manifests/1")
    assert len(strict.sent("PUT", "/manifests/")) == 1


def test_a_push_that_was_cut_short_goes_on_where_it_was(strict):
    strict.faults["PUT"] = [-1, -1, *[503] * 5]
    target = parse(f"{strict.host}/models/digits:1")
    with Registry(strict.host) as registry:
        made = image()
        with pytest.raises(UnavailableError, match="status 503"):
            push(made, registry, target)
        strict.asked.clear()
        sendings = list[Sending]()
        push(made, registry, target, told=sendings.append)

    assert states(sendings) == {
        "dependencies": "present",
        "runtime and entrypoint": "present",
        "package": "sent",
        "configuration": "sent",
    }


@pytest.mark.parametrize("fault", [503, 429, 0], ids=["unavailable", "throttled", "cut"])
def test_what_may_pass_is_tried_again(strict, fault):
    for method in ("HEAD", "POST", "PUT"):
        strict.faults[method] = [fault]
    with Registry(strict.host) as registry:
        made = image()
        push(made, registry, parse(f"{strict.host}/models/digits:1"))

    assert strict.repositories["models/digits"].tags == {"1": made.digest}


def test_an_upload_in_pieces_goes_on_from_the_last_byte_that_arrived(strict):
    body = bytes(range(256)) * 20_000
    blob = Blob(digest=f"sha256:{hashlib.sha256(body).hexdigest()}", size=len(body), open=lambda: io.BytesIO(body))
    with Registry(strict.host, chunk_bytes=2_000_000) as registry:
        strict.faults["PATCH"] = [0, 503]
        registry.push_blob("models/large", blob)

    assert strict.repositories["models/large"].blobs == {blob.digest: body}
    # Three pieces and two that failed; the whole did not begin anew.
    assert len(strict.sent("PATCH", "/uploads/")) in {5, 6}
    assert len(strict.sent("POST", "/uploads/")) == 1


def test_a_layer_that_changes_while_it_is_pushed_is_refused(strict):
    blob = Blob(digest=f"sha256:{hashlib.sha256(b'before').hexdigest()}", size=5, open=lambda: io.BytesIO(b"after"))

    with Registry(strict.host) as registry, pytest.raises(InternalError, match="DIGEST_INVALID"):
        registry.push_blob("models/digits", blob)


@pytest.mark.parametrize("where", ["a registry that does not mount", "another registry"])
def test_a_base_that_cannot_be_taken_over_goes_by_way_of_this_machine(strict, where, another):
    source = another if where == "another registry" else strict
    strict.mounts = False
    with Registry(strict.host) as registry, Registry(source.host) as other:
        push_base(other, parse(f"{source.host}/public/python:3.11"))
        base = resolve(other, parse(f"{source.host}/public/python:3.11"), architecture="x86_64")
        sendings = list[Sending]()
        push(image(base=base), registry, parse(f"{strict.host}/models/digits:1"), source=other, told=sendings.append)

    assert states(sendings)[f"base {base.layers[0]['digest'][7:19]}"] == "sent"
    assert strict.uploads == {}


def test_the_password_stays_with_the_registry_where_blobs_are_elsewhere(strict):
    strict.auth, strict.redirects = "basic", True
    with Registry(strict.host, credentials=ME) as registry:
        made = image()
        push(made, registry, parse(f"{strict.host}/models/digits:1"))

        # The fixture looks whether the storage saw a credential.
        assert resolve(registry, parse(f"{strict.host}/models/digits:1"), architecture="x86_64").digest == made.digest


def test_a_base_for_other_architectures_is_refused_with_those_it_has(strict):
    with Registry(strict.host) as registry:
        target = parse(f"{strict.host}/public/python:3.11")
        push(image(architecture="arm64"), registry, target)
        with pytest.raises(UnsupportedError, match="it is for linux/arm64, and linux/amd64 is needed"):
            resolve(registry, target, architecture="x86_64")
        body = json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image(architecture="arm64").descriptor]}
        ).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        registry.put_manifest("public/python", "index", Manifest(media_type=INDEX, body=body, digest=digest))
        with pytest.raises(UnsupportedError, match="it has linux/arm64, and linux/amd64 is needed"):
            resolve(registry, parse(f"{strict.host}/public/python:index"), architecture="x86_64")


def test_what_the_registry_damaged_is_noticed(strict):
    with Registry(strict.host) as registry:
        made = image()
        pushed = push(made, registry, parse(f"{strict.host}/models/digits:1"))
        repository = strict.repositories["models/digits"]
        config = json.loads(made.manifest.body)["config"]["digest"]
        repository.blobs[config] = b"{}"
        with pytest.raises(InternalError, match="its content has sha256:"):
            resolve(registry, pushed, architecture="x86_64")
        repository.manifests[made.digest] = (made.manifest.media_type, b"{}")
        with pytest.raises(InternalError, match=made.digest):
            resolve(registry, pushed, architecture="x86_64")


@pytest.mark.parametrize(
    ("status", "kind"), [(403, PermissionDeniedError), (404, NotFoundError), (500, UnavailableError)]
)
def test_refusals_are_sorted_and_say_who_refuses_what_and_why(strict, status, kind):
    strict.faults["POST"] = [status] * 5

    with Registry(strict.host) as registry, pytest.raises(kind) as caught:
        push(image(), registry, parse(f"{strict.host}/models/digits:1"))

    assert all(word in str(caught.value) for word in ["models/digits", strict.host, str(status), "broken on purpose"])


def test_a_target_in_another_registry_is_refused(strict):
    with Registry(strict.host) as registry, pytest.raises(InvalidArgumentError, match="another registry"):
        push(image(), registry, parse("example.com/models/digits:1"))


def test_nobody_there_is_unavailable():
    with Registry("127.0.0.1:1") as registry, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        registry.manifest("models/digits", "1")


def test_a_layout_of_an_image_upon_a_base_needs_its_registry(strict, tmp_path):
    with Registry(strict.host) as registry:
        push_base(registry, parse(f"{strict.host}/public/python:3.11"))
        base = resolve(registry, parse(f"{strict.host}/public/python:3.11"), architecture="x86_64")

    with pytest.raises(InvalidArgumentError, match="needs its registry"):
        write_layout(image(base=base), tmp_path / "layout")
