"""Images are pushed to ECR over the registry's own API, and functions are made of them."""

import base64
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
_numbers = itertools.count(1)


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files):
    """Return files as a layer; a file without content takes away what is below it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(target.getvalue(), mtime=0)


class Repository:
    """One repository, spoken to as the distribution specification says."""

    def __init__(self, account):
        self.name = f"models/made-{next(_numbers)}"
        ecr = account.client("ecr")
        self.uri = ecr.create_repository(repositoryName=self.name)["repository"]["repositoryUri"]
        self.token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        self.url = f"http://{self.uri.partition('/')[0]}"

    def send(self, method, path, data=None, **headers):
        """Send a request; returns status, headers and body."""
        fields = {"Authorization": f"Basic {self.token}"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        with urlopen(Request(f"{self.url}{path}", data=data, headers=fields, method=method)) as answer:
            return answer.status, answer.headers, answer.read()

    def push_blob(self, data, *, pieces=1):
        """Push a blob in one piece or several; returns how a manifest names it."""
        place = self.send("POST", f"/v2/{self.name}/blobs/uploads/", b"")[1]["Location"]
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            span = f"{start}-{start + len(piece) - 1}"
            place = self.send("PATCH", place, piece, Content_Range=span)[1]["Location"]
        self.send("PUT", f"{place}?digest={quote(digest_of(data))}", b"")
        return {"digest": digest_of(data), "size": len(data)}

    def push(self, *layers, tag="latest", **config):
        """Push an image; returns its digest."""
        described = [self.push_blob(data, pieces=2) | {"mediaType": LAYER} for data in layers]
        content = {"architecture": "amd64", "os": "linux", "config": {"WorkingDir": "/var/task"} | config}
        content["rootfs"] = {"type": "layers", "diff_ids": [digest_of(gzip.decompress(data)) for data in layers]}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.push_blob(json.dumps(content).encode()) | {"mediaType": CONFIG},
            "layers": described,
        }
        body = json.dumps(manifest).encode()
        return self.send("PUT", f"/v2/{self.name}/manifests/{tag}", body, Content_Type=MANIFEST)[1][
            "Docker-Content-Digest"
        ]


@pytest.fixture
def repository(account):
    """Return a new repository."""
    return Repository(account)


def app(text):
    return f"import os\ndef handler(event, context):\n    return [{text!r}, os.environ.get('FROM_IMAGE')]\n".encode()


@pytest.mark.parametrize("form", ["tag", "digest", "name of AWS"])
def test_a_function_runs_the_image_that_was_pushed(account, repository, form):
    pushed = repository.push(layer({"var/task/app.py": app("image")}), Cmd=["app.handler"], Env=["FROM_IMAGE=yes"])
    uris = {
        "tag": f"{repository.uri}:latest",
        "digest": f"{repository.uri}@{pushed}",
        "name of AWS": f"123456789012.dkr.ecr.us-east-1.amazonaws.com/{repository.name}@{pushed}",
    }
    name = f"image-{next(_numbers)}"
    client = account.client("lambda")
    client.create_function(
        FunctionName=name, Role=account.role(), PackageType="Image", Code={"ImageUri": uris[form]}, Timeout=10
    )
    account.settle(name)
    found = client.get_function(FunctionName=name)

    assert account.invoke(name, {}).value == ["image", "yes"]
    assert found["Configuration"]["CodeSha256"] == pushed.removeprefix("sha256:")
    assert found["Code"]["ResolvedImageUri"].endswith(f"{repository.name}@{pushed}")


def test_layers_lie_over_each_other_and_take_away(account, repository):
    first = layer({"var/task/app.py": app("first"), "var/task/gone.py": b"HERE = True\n"})
    source = b"def handler(event, context):\n    import importlib.util\n    return importlib.util.find_spec('gone') is None\n"
    second = layer({"var/task/app.py": source, "var/task/.wh.gone.py": b""})
    repository.push(first, second, Cmd=["app.handler"])
    name = f"image-{next(_numbers)}"
    account.client("lambda").create_function(
        FunctionName=name,
        Role=account.role(),
        PackageType="Image",
        Code={"ImageUri": f"{repository.uri}:latest"},
        Timeout=10,
    )
    account.settle(name)

    assert account.invoke(name, {}).value is True


def test_what_was_pushed_is_there_and_known_to_ecr(account, repository):
    pushed = repository.push(layer({"var/task/app.py": app("x")}), tag="one")
    body = repository.send("GET", f"/v2/{repository.name}/manifests/one")[2]
    images = account.client("ecr").describe_images(repositoryName=repository.name)["imageDetails"]

    assert digest_of(body) == pushed
    assert json.loads(repository.send("GET", f"/v2/{repository.name}/tags/list")[2])["tags"] == ["one"]
    assert [image["imageDigest"] for image in images] == [pushed]


def test_a_blob_can_be_mounted_from_another_repository(account, repository):
    other = Repository(account)
    blob = repository.push_blob(b"shared")
    path = f"/v2/{other.name}/blobs/uploads/?mount={quote(blob['digest'])}&from={quote(repository.name)}"

    assert other.send("POST", path, b"")[0] == 201
    assert other.send("GET", f"/v2/{other.name}/blobs/{blob['digest']}")[2] == b"shared"


@pytest.mark.parametrize(
    "token", ["", base64.b64encode(b"AWS:123456789012-auth-token").decode()], ids=["none", "made up"]
)
def test_a_login_without_ecrs_token_is_refused(repository, token):
    repository.token = token

    with pytest.raises(HTTPError) as caught:
        repository.send("GET", "/v2/")
    with caught.value as answer:
        assert (answer.code, answer.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")


def test_whoever_logged_in_may_push_only_what_his_policies_allow(account, repository, policy):
    reader = account.user(policy("ecr:GetAuthorizationToken", "ecr:BatchGetImage"))
    repository.token = reader.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]

    with pytest.raises(HTTPError) as caught:
        repository.push_blob(b"x")
    with caught.value as answer:
        assert "ecr:InitiateLayerUpload" in answer.read().decode()


def test_bytes_that_are_not_what_their_digest_says_are_refused(repository):
    place = repository.send("POST", f"/v2/{repository.name}/blobs/uploads/", b"")[1]["Location"]

    with pytest.raises(HTTPError) as caught:
        repository.send("PUT", f"{place}?digest={quote(digest_of(b'one'))}", b"another")
    with caught.value as answer:
        assert json.loads(answer.read())["errors"][0]["code"] == "DIGEST_INVALID"


def test_an_image_that_is_not_there_is_refused(account, repository):
    with pytest.raises(ClientError, match="does not exist"):
        account.client("lambda").create_function(
            FunctionName="refused",
            Role=account.role(),
            PackageType="Image",
            Code={"ImageUri": f"{repository.uri}:nothing"},
        )


def test_an_image_has_no_runtime_of_lambdas(account, repository):
    with pytest.raises(ClientError, match="not allowed for functions created with container images"):
        account.client("lambda").create_function(
            FunctionName="refused", Role=account.role(), PackageType="Image", Handler="app.handler", Runtime="python3.11",
            Code={"ImageUri": f"{repository.uri}:latest"},
        )  # fmt: skip


def root_with_python(session_root):
    """Return a layer with a whole Python: this machine's, its libraries and the runtime client, and a shell."""
    python, library = os.path.realpath(sys.executable), Path(sysconfig.get_path("stdlib"))
    runtime = session_root / "aws" / "runtime" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = f"opt/python/lib/{library.name}/site-packages"
    client = [
        path.resolve()
        for name in ("awslambdaric", "simplejson", "snapshot*", "runtime_client*")
        for path in runtime.glob(name)
    ]
    programs = [
        python,
        "/bin/sh",
        *(library / "lib-dynload").glob("*.so"),
        *(path for path in client if path.suffix == ".so"),
    ]
    needed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in set(re.findall(r"(/\S+) \(0x", needed)):
            archive.add(os.path.realpath(name), name.lstrip("/"))
        archive.add(os.path.realpath("/bin/sh"), "bin/sh")
        archive.add(python, f"opt/python/bin/{library.name}")
        left_out = re.compile(r"site-packages|/test|/idlelib|__pycache__|/config-|/ensurepip")
        archive.add(
            library,
            f"opt/python/lib/{library.name}",
            filter=lambda member: None if left_out.search(member.name) else member,
        )
        for path in client:
            archive.add(path, f"{site}/{path.name}")
    return gzip.compress(target.getvalue(), 1, mtime=0)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ldd") is None,
    reason="only root can change the root directory",
)
def test_an_image_with_a_python_of_its_own_runs_in_its_own_root(account, function, repository, session_root):
    account.invoke(function, {})  # makes the runtime directory, from which the client is taken
    source = b"import os, sys\ndef handler(event, context):\n    return [sys.executable, os.getcwd(), sorted(os.listdir('/'))]\n"
    repository.push(
        root_with_python(session_root),
        layer({"var/task/app.py": source}),
        Entrypoint=[f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-m", "awslambdaric"],
        Cmd=["app.handler"],
        Env=["PYTHONPATH=/var/task"],
    )
    name = f"image-{next(_numbers)}"
    account.client("lambda").create_function(
        FunctionName=name,
        Role=account.role(),
        PackageType="Image",
        Code={"ImageUri": f"{repository.uri}:latest"},
        Timeout=20,
    )
    account.settle(name)
    program, directory, top = account.invoke(name, {}).value

    assert program.startswith("/opt/python/bin/")
    assert directory == "/var/task"
    assert {"bin", "opt", "var"} <= set(top)
    assert "proc" not in top
