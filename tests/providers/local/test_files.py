"""What only files have: processes that die while they write, names that file systems fold, strangers in the directory."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyserve.driver import PutAttributes
from polyserve.testing.keys import ORDERED, WEIRD_KEYS
from polyserve_local.errors import BucketNotEmptyError, DamagedObjectError, InvalidNameError, PreconditionError
from polyserve_local.files import FileStore, ensure_bucket, remove_bucket
from polyserve_local.keys import Walk, directory_of, encode_key, file_of

KEYS = st.text(
    st.one_of(st.sampled_from("aA./%é~\\ \U0001f600"), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=200,
)


@pytest.fixture
def store(tmp_path):
    ensure_bucket(tmp_path, "bucket")
    return FileStore(tmp_path, "bucket")


def put(store, key, body=b"", **attrs):
    return store.put(key, io.BytesIO(body), attrs=PutAttributes(**attrs))


def keys(store):
    page = store.list_page(prefix="", delimiter="", token=None, limit=1000)
    return [meta.key for meta in page.objects]


def files_below(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file()]


# --- keys and paths ---


@given(KEYS)
@example("x" * 1024)
@example("/" * 1024)
@example("é" * 512)
def test_no_name_is_longer_than_file_systems_take_and_none_means_something_to_them(key):
    for name in file_of(key.encode()[:1024]).split("/"):
        assert 1 <= len(name) <= 255
        assert not name.startswith(".")
        assert name.isascii()
        assert name == name.lower()
        assert name.isprintable()
        assert not set(name) & set('\\:*?"<>| ')


@given(KEYS, KEYS)
def test_two_keys_never_share_a_path_nor_does_one_lie_below_the_other(first, second):
    one, two = file_of(first.encode()), file_of(second.encode())

    assert (one == two) == (first == second)
    assert not one.startswith(two + "/")


@settings(max_examples=40)
@given(st.lists(KEYS, max_size=30))
@example(["x" * 80, "x" * 80 + "/b", "x" * 80 + "!", "x" * 80 + "a", "x" * 79 + "/", "x" * 160, "x" * 159 + "/"])
@example([*WEIRD_KEYS.values(), *ORDERED])
def test_a_walk_gives_the_keys_back_in_the_order_of_their_bytes(tmp_path_factory, given_keys):
    root = tmp_path_factory.mktemp("walk")
    wanted = sorted({key.encode()[:1024] for key in given_keys})
    for key in wanted:
        path = root / file_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    assert [key for key, _ in Walk(str(root))] == wanted
    for after in wanted[::3]:
        assert [key for key, _ in Walk(str(root), after=after)] == [key for key in wanted if key > after]
        for cut in (1, len(after) // 2, len(after)):
            prefix = after[:cut]
            below = [key for key in wanted if key.startswith(prefix)]
            assert [key for key, _ in Walk(str(root), prefix=prefix)] == below


def test_a_directory_is_found_without_reading_those_above_it():
    assert directory_of(b"") == ""
    assert directory_of(b"a/B/") == "a%/%42%"
    assert file_of(b"a/B/c") == "a%/%42%/c"
    assert file_of(b"a/") == "a%/%e"


@pytest.mark.parametrize("key", ["", "x" * 1025, "\udc80"], ids=["empty", "long", "surrogate"])
def test_what_is_no_key_is_refused_by_the_driver_too(key):
    with pytest.raises(InvalidNameError):
        encode_key(key)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "A", ".writing", "../a", "a" * 64, "é", "a\n"])
def test_a_bucket_cannot_leave_its_root(tmp_path, name):
    for make in (
        lambda: FileStore(tmp_path, name),
        lambda: ensure_bucket(tmp_path, name),
        lambda: remove_bucket(tmp_path, name),
    ):
        with pytest.raises(InvalidNameError):
            make()
    assert list(tmp_path.iterdir()) == []


# --- processes that die ---

WRITER = """
import os, signal, sys
from pathlib import Path
from polyserve.driver import PutAttributes
from polyserve_local import files
from polyserve_local.files import FileStore

class Body:
    left = 3
    def read(self, size):
        self.left -= 1
        if self.left == 0 and sys.argv[2] == "reading":
            os.kill(os.getpid(), signal.SIGKILL)
        return b"new" * 100_000 if self.left else b""

def dies(function):
    def dying(*arguments, **named):
        os.kill(os.getpid(), signal.SIGKILL)
    return dying

if sys.argv[2] not in ("reading", "nowhere"):
    setattr(os, sys.argv[2], dies(getattr(os, sys.argv[2])))
if sys.argv[2] == "rename":
    files._make_directories(str(Path(sys.argv[1]) / "bucket/deep%/down%"))
FileStore(Path(sys.argv[1]), "bucket").put("k", Body(), attrs=PutAttributes())
"""


@pytest.mark.parametrize("where", ["reading", "fsync", "rename", "nowhere"])
def test_a_writer_that_is_killed_at_any_point_leaves_the_old_object_and_nothing_else(store, tmp_path, where):
    old = put(store, "k", b"old")

    status = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), where], check=False).returncode

    assert status == (0 if where == "nowhere" else -signal.SIGKILL)
    assert keys(store) == ["k"]
    if where != "nowhere":
        _, body = store.get("k")
        with body:
            assert body.read() == b"old"
        assert store.head("k").version == old.version
        assert not store.list_page(prefix="", delimiter="/", token=None, limit=10).prefixes
        assert len(files_below(tmp_path / "bucket" / ".writing")) == 2
    # The next writer sweeps up, and the lock of the dead one is gone.
    put(FileStore(tmp_path, "bucket"), "k", b"newer", if_match=store.head("k").version)
    assert [path.name for path in files_below(tmp_path / "bucket" / ".writing")] == ["lock"]
    store.delete("k")
    remove_bucket(tmp_path, "bucket")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_alone_what_is_being_written(store, tmp_path):
    class Sweeping(io.BytesIO):
        def read(self, size=-1):
            ensure_bucket(tmp_path, "bucket")
            return super().read(size)

    store.put("k", Sweeping(b"content"), attrs=PutAttributes())

    assert store.head("k").size == 7


RACER = """
import io, sys
from pathlib import Path
from polyserve.driver import PutAttributes
from polyserve_local.errors import PreconditionError
from polyserve_local.files import FileStore

store = FileStore(Path(sys.argv[1]), "bucket")
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(200):
    meta = store.head("counter")
    count = int(meta.metadata["n"])
    try:
        store.put("counter", io.BytesIO(b""), attrs=PutAttributes(metadata={"n": str(count + 1)}, if_match=meta.version))
        won += 1
    except PreconditionError:
        pass
    try:
        store.put(f"once/{number}", io.BytesIO(b""), attrs=PutAttributes(if_absent=True))
        won += 1000
    except PreconditionError:
        pass
    if number % 2:
        try:
            store.delete(f"once/{number}")
        except FileNotFoundError:
            pass
print(won)
"""


def test_processes_that_write_conditionally_at_once_lose_no_update(store, tmp_path):
    put(store, "counter", metadata={"n": "0"})
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    told = []
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        told.append(int(racer.communicate(timeout=60)[0]))
        assert racer.returncode == 0

    assert int(store.head("counter").metadata["n"]) == sum(number % 1000 for number in told)
    # Even names are written once and stay; odd ones come and go.
    assert len([key for key in keys(store) if key.startswith("once/")]) >= 100
    assert sum(number // 1000 for number in told) >= 200


# --- buckets ---


def test_deleting_objects_leaves_no_directory_behind(store, tmp_path):
    for key in ("a/b/c", "a/b/d", "x" * 300 + "/y"):
        put(store, key)

    store.delete("a/b/c")
    assert (tmp_path / "bucket" / "a%" / "b%").is_dir()
    store.delete("a/b/d")
    store.delete("x" * 300 + "/y")

    assert os.listdir(tmp_path / "bucket") == [".writing"]


def test_a_bucket_with_objects_or_strangers_is_not_removed(store, tmp_path):
    put(store, "a/b")
    with pytest.raises(BucketNotEmptyError):
        remove_bucket(tmp_path, "bucket")
    store.delete("a/b")
    (tmp_path / "bucket" / ".DS_Store").touch()
    with pytest.raises(BucketNotEmptyError, match="no objects"):
        remove_bucket(tmp_path, "bucket")
    assert keys(store) == []
    (tmp_path / "bucket" / ".DS_Store").unlink()

    remove_bucket(tmp_path, "bucket")

    with pytest.raises(FileNotFoundError, match="no such bucket"):
        put(store, "k")
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        remove_bucket(tmp_path, "bucket")


def test_a_bucket_that_is_being_written_to_is_not_removed(store, tmp_path):
    class Removing(io.BytesIO):
        def read(self, size=-1):
            with pytest.raises(BucketNotEmptyError, match="writing"):
                remove_bucket(tmp_path, "bucket")
            return super().read(size)

    store.put("k", Removing(b"content"), attrs=PutAttributes())

    assert keys(store) == ["k"]


def test_empty_directories_of_a_dead_writer_are_no_prefixes_and_do_not_keep_the_bucket(store, tmp_path):
    (tmp_path / "bucket" / "a%" / "b%").mkdir(parents=True)

    assert store.list_page(prefix="", delimiter="/", token=None, limit=10).prefixes == ()
    remove_bucket(tmp_path, "bucket")
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_the_directory_is_named_and_not_taken_for_an_object(store, tmp_path):
    (tmp_path / "bucket" / "stranger").write_bytes(b"not ours")

    with pytest.raises(DamagedObjectError, match="stranger"):
        store.head("stranger")
    with pytest.raises(DamagedObjectError, match="stranger"):
        keys(store)


# --- contents ---


def test_an_object_with_much_metadata_and_none_at_all_reads_back(store):
    metadata = {f"n{number}": "v" * 100 for number in range(40)}
    put(store, "much", b"x" * 10_000, metadata=metadata)
    put(store, "none")

    assert store.head("much").metadata == metadata
    assert (store.head("none").metadata, store.head("none").size) == ({}, 0)


def test_equal_content_gets_another_version(store):
    versions = {put(store, "k", b"same").version for _ in range(10)}

    assert len(versions) == 10


def test_a_reader_keeps_what_it_opened_whatever_happens_to_the_object(store):
    put(store, "k", b"old" * 1000)
    meta, body = store.get("k", offset=3)
    put(store, "k", b"new")
    store.delete("k")

    with body:
        assert body.read(3) == b"old"
        assert body.seek(0) == 0
        assert len(body.read()) == 2997 == meta.size - 3
        assert body.read() == b""


def test_a_file_is_copied_from_where_it_stands(store, tmp_path):
    path = tmp_path / "body"
    path.write_bytes(bytes(range(256)) * 10_000)
    with path.open("rb") as file:
        file.read(1000)
        assert store.put("k", file, attrs=PutAttributes()).size == 2_559_000

    _, body = store.get("k", length=5)
    with body:
        assert body.read() == bytes(range(1000 % 256, 1000 % 256 + 5))


def test_conditions_are_checked_under_the_lock_and_named(store):
    version = put(store, "k", b"1").version
    with pytest.raises(PreconditionError, match="exists already"):
        put(store, "k", if_absent=True)
    put(store, "k", b"2")
    with pytest.raises(PreconditionError, match=version):
        put(store, "k", if_match=version)
    with pytest.raises(PreconditionError, match="any more"):
        put(store, "gone", if_match=version)


@pytest.mark.parametrize("token", ["?", "é", "a"])
def test_a_token_that_is_none_is_refused(store, token):
    with pytest.raises(InvalidNameError, match="token"):
        store.list_page(prefix="", delimiter="", token=token, limit=1)


def test_a_page_limit_is_at_least_one(store):
    with pytest.raises(InvalidNameError, match="at least 1"):
        store.list_page(prefix="", delimiter="", token=None, limit=0)


def test_many_objects_in_one_directory_are_listed_in_pages(store):
    wanted = sorted(f"{number:x}" for number in range(500))
    for key in wanted:
        put(store, key)

    found, token = [], None
    for _ in itertools.count():
        page = store.list_page(prefix="", delimiter="", token=token, limit=37)
        found += [meta.key for meta in page.objects]
        token = page.next_token
        if token is None:
            break
    assert found == wanted
