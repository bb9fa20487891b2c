"""The manifest of a package, and the check of a package against it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyserve.runtime import manifest as manifests
from polyserve.runtime.manifest import FileEntry, Manifest, ManifestError, Tolerance, is_safe_path, tree_digest, verify
from polyserve.runtime.signature import Signature, TensorSpec


def described(**changes: object) -> Manifest:
    spec = TensorSpec(name="input", datatype="FP64", shape=(-1, 4))
    manifest = Manifest(
        name="iris",
        python="3.11",
        flavor="sklearn",
        loader={"format": "pickle", "path": "model/model.pickle", "methods": ["predict"]},
        requirements=("numpy==2.0.0",),
        signature=Signature(input_kind="array", output_kind="array", inputs=(spec,), outputs=(spec,)),
        row_wise=True,
        safe=False,
        sample=None,
        tolerance=Tolerance(),
        files={},
    )
    return dataclasses.replace(manifest, **changes)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/é.bin").write_bytes(b"weights")
    (tmp_path / "a.txt").write_bytes(b"text")
    manifest = described(files=manifests.file_entries(tmp_path))
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    return tmp_path


def test_the_json_is_canonical():
    raw = described().to_json()

    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert raw.startswith(b'{"files":{},"flavor":"sklearn","loader":')


def test_what_was_written_is_what_is_read():
    manifest = described(
        sample={"request": "sample/request.bin", "request_json_bytes": 7, "answer": "sample/answer.json"}
    )

    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_package_made_of_another_says_of_which_and_others_do_not_mention_it():
    made = described(origin={"digest": "a" * 64, "method": "int8"})

    assert Manifest.from_json(made.to_json()) == made
    assert made.digest != described().digest
    assert "origin" not in json.loads(described().to_json())


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"{", "is not JSON"),
        (b"[]", "holds a list"),
        (b"{}", "has schema None, and this polyserve reads 1"),
        (b'{"schema":2}', "has schema 2, and this polyserve reads 1: upgrade"),
        (b'{"schema":1}', "lacks "),
    ],
)
def test_what_is_no_manifest_is_refused(raw, told):
    with pytest.raises(ManifestError, match=told):
        Manifest.from_json(raw)


@pytest.mark.parametrize(
    "key", ["name", "python", "flavor", "loader", "requirements", "signature", "row_wise", "files", "tolerance"]
)
def test_a_missing_key_is_named(key):
    fields = json.loads(described().to_json())
    del fields[key]

    with pytest.raises(ManifestError, match=f"lacks '{key}'"):
        Manifest.from_json(json.dumps(fields).encode())


def test_a_key_that_nobody_knows_is_refused():
    fields = json.loads(described().to_json()) | {"more": 1}

    with pytest.raises(ManifestError, match="not in canonical form"):
        Manifest.from_json(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/../b", ".", "a\\b", "c:x", ""])
def test_a_path_that_leaves_the_package_is_refused(path):
    raw = described(files={path: FileEntry(sha256="0" * 64, size=0)}).to_json()

    assert not is_safe_path(path)
    with pytest.raises(ManifestError, match="no path inside the package"):
        Manifest.from_json(raw)


def test_a_flavor_that_is_no_module_name_is_refused():
    with pytest.raises(ManifestError, match="no flavor's name"):
        Manifest.from_json(described(flavor="os.path").to_json())


def test_a_whole_package_verifies_and_has_the_digest_that_its_manifest_promises(package):
    manifest = manifests.read(package)
    verify(package, manifest)

    assert manifest.digest == tree_digest(package)


def test_the_digest_is_of_modes_digests_and_paths_in_the_order_of_their_bytes(package):
    def line(path: str) -> bytes:
        return f"644 {hashlib.sha256((package / path).read_bytes()).hexdigest()} {path}\0".encode()

    expected = hashlib.sha256(line("a.txt") + line("manifest.json") + line("model/é.bin")).hexdigest()
    for file in package.rglob("*"):
        file.chmod(0o755)

    assert tree_digest(package) == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "a.txt").write_bytes(b"TEXT"), "a.txt has sha256"),
        (lambda root: (root / "a.txt").write_bytes(b"longer"), "a.txt has 6 bytes, and the manifest says 4"),
        (lambda root: (root / "a.txt").unlink(), "a.txt is missing"),
        (lambda root: (root / "z.txt").write_bytes(b""), "z.txt is not in the manifest"),
        (
            lambda root: (root / "model/__pycache__").mkdir() or (root / "model/__pycache__/x.pyc").write_bytes(b""),
            "x.pyc is not in",
        ),
        (
            lambda root: (root / "model/é.bin").unlink() or (root / "model/é.bin").symlink_to("/etc/hostname"),
            "neither a file",
        ),
    ],
    ids=["other content", "other size", "missing", "extra", "byte-code", "link"],
)
def test_the_first_file_that_differs_is_named(package, change, told):
    manifest = manifests.read(package)
    change(package)

    with pytest.raises(ManifestError) as caught:
        verify(package, manifest)
    assert told in str(caught.value)


def test_a_directory_without_manifest_is_no_package(tmp_path):
    with pytest.raises(ManifestError, match="is no model package"):
        manifests.read(tmp_path)


@given(
    st.dictionaries(st.from_regex(r"[a-zé]{1,3}(/[a-z]{1,2})?", fullmatch=True), st.binary(max_size=8), max_size=5),
    st.data(),
)
def test_any_change_of_any_file_changes_the_digest(tmp_path_factory, files, data):
    root = tmp_path_factory.mktemp("tree")
    kept = {
        path: content for path, content in files.items() if not any(other.startswith(f"{path}/") for other in files)
    }
    for path, content in kept.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)
    before = tree_digest(root)

    assert tree_digest(root) == before
    if kept:
        changed = root / data.draw(st.sampled_from(sorted(kept)))
        changed.write_bytes(changed.read_bytes() + b"!")
        assert tree_digest(root) != before
