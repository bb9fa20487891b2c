"""The contract of listings: order, prefixes, delimiters and pages, as `Bucket.list` and the drivers below it give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from polyserve.bucket import Bucket
from polyserve.driver import Page
from polyserve.errors import InvalidArgumentError, translating
from polyserve.testing.harness import Harness, RawObject
from polyserve.testing.keys import ORDERED

__all__ = ["ListingContract"]

TREE = ("a", "a/", "a/b", "a/b/c", "a/d", "a//e", "ab", "b/c/d", "b/c/e", "c", "é/x", "é/y")


class ListingContract:
    """What users of a listing rely on."""

    @pytest.fixture
    def bucket(self, harness: Harness) -> Iterator[Bucket]:
        """Give an empty bucket."""
        name = harness.fresh_bucket()
        yield Bucket(harness.provider(), name)
        harness.drop_bucket(name)

    def test_an_empty_bucket_lists_nothing(self, bucket: Bucket) -> None:
        assert list(bucket.list()) == []
        assert list(bucket.list("a", delimiter="/")) == []

    def test_a_listing_tells_key_size_and_version(self, harness: Harness, bucket: Bucket) -> None:
        harness.raw_put(bucket.name, "k", RawObject(body=b"12345"))

        (meta,) = bucket.list()

        assert (meta.key, meta.size, meta.version) == ("k", 5, bucket.head("k").version)

    @pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
    def test_a_listing_is_in_the_order_of_utf8_bytes_across_pages(
        self, harness: Harness, bucket: Bucket, page_size: int
    ) -> None:
        for key in reversed(ORDERED):
            harness.raw_put(bucket.name, key, RawObject(body=b""))

        assert [meta.key for meta in bucket.list(page_size=page_size)] == list(ORDERED)

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("", TREE),
            ("a", ("a", "a/", "a//e", "a/b", "a/b/c", "a/d", "ab")),
            ("a/", ("a/", "a//e", "a/b", "a/b/c", "a/d")),
            ("a/b", ("a/b", "a/b/c")),
            ("a/b/", ("a/b/c",)),
            ("a//", ("a//e",)),
            ("b/c/d", ("b/c/d",)),
            ("b/c/d/", ()),
            ("é", ("é/x", "é/y")),
            ("A", ()),
            ("/", ()),
            ("d", ()),
        ],
        ids=repr,
    )
    def test_a_prefix_selects_by_bytes_and_knows_no_directories(
        self, bucket: Bucket, prefix: str, expected: Sequence[str]
    ) -> None:
        self._fill(bucket)

        assert [meta.key for meta in bucket.list(prefix, page_size=2)] == sorted(expected, key=str.encode)

    @pytest.mark.parametrize("page_size", [1, 2, 1000])
    @pytest.mark.parametrize(
        ("prefix", "delimiter", "expected"),
        [
            ("", "/", ["a", "[a/]", "ab", "[b/]", "c", "[é/]"]),
            ("a/", "/", ["a/", "[a//]", "a/b", "[a/b/]", "a/d"]),
            ("a", "/", ["a", "[a/]", "ab"]),
            ("a/b", "/", ["a/b", "[a/b/]"]),
            ("b", "/", ["[b/]"]),
            ("b/", "/", ["[b/c/]"]),
            ("b/c/", "/", ["b/c/d", "b/c/e"]),
            ("", "c", ["a", "a/", "a//e", "a/b", "[a/b/c]", "a/d", "ab", "[b/c]", "[c]", "é/x", "é/y"]),
            ("", "/c", ["a", "a/", "a//e", "a/b", "[a/b/c]", "a/d", "ab", "[b/c]", "c", "é/x", "é/y"]),
            ("é", "/", ["[é/]"]),
            ("x", "/", []),
        ],
        ids=lambda value: repr(value) if isinstance(value, str) else "",
    )
    def test_a_delimiter_rolls_up_what_has_it_behind_the_prefix(
        self, bucket: Bucket, prefix: str, delimiter: str, expected: list[str], page_size: int
    ) -> None:
        self._fill(bucket)

        found = bucket.list(prefix, delimiter=delimiter, page_size=page_size)

        assert [f"[{item}]" if isinstance(item, str) else item.key for item in found] == expected

    @pytest.mark.parametrize("delimiter", ["", "/"])
    def test_a_page_holds_no_more_than_its_limit_and_the_last_one_has_no_token(
        self, harness: Harness, bucket: Bucket, delimiter: str
    ) -> None:
        self._fill(bucket)

        pages = self._pages(harness, bucket, delimiter=delimiter, limit=3)

        sizes = [len(page.objects) + len(page.prefixes) for page in pages]
        assert max(sizes) <= 3
        assert sum(sizes) == (6 if delimiter else len(TREE))
        assert pages[-1].next_token is None

    def test_what_is_written_before_the_token_or_deleted_at_it_moves_no_other_object(
        self, harness: Harness, bucket: Bucket
    ) -> None:
        keys = [f"k{number:02}" for number in range(10)]
        for key in keys:
            bucket.put(key, b"")
        store = harness.provider().store(bucket.name)
        page = store.list_page(prefix="", delimiter="", token=None, limit=4)
        assert page.next_token is not None
        first = [meta.key for meta in page.objects]
        # The last one told, the next one to tell, and some before.
        bucket.put("a", b"")
        bucket.put("k00a", b"")
        bucket.delete(first[-1])
        bucket.delete(keys[len(first)])

        rest = []
        token: str | None = page.next_token
        while token is not None:
            page = store.list_page(prefix="", delimiter="", token=token, limit=4)
            rest += [meta.key for meta in page.objects]
            token = page.next_token
        assert rest == keys[len(first) + 1 :]

    def test_objects_can_be_deleted_while_they_are_listed(self, harness: Harness, bucket: Bucket) -> None:
        self._fill(bucket)

        for meta in bucket.list(page_size=2):
            bucket.delete(meta.key)

        assert list(harness.raw_list(bucket.name)) == []

    def test_a_listing_asks_for_a_page_when_it_is_needed(self, harness: Harness, bucket: Bucket) -> None:
        self._fill(bucket)
        listing = bucket.list(page_size=1)
        assert next(listing).key == "a"

        bucket.delete("c")

        assert "c" not in [meta.key for meta in listing]

    @pytest.mark.parametrize("page_size", [0, -1, 1001])
    def test_a_page_size_that_no_provider_has_is_refused(self, bucket: Bucket, page_size: int) -> None:
        with pytest.raises(InvalidArgumentError, match=str(page_size)):
            bucket.list(page_size=page_size)

    @staticmethod
    def _fill(bucket: Bucket) -> None:
        for key in TREE:
            bucket.put(key, key.encode())

    @staticmethod
    def _pages(harness: Harness, bucket: Bucket, *, delimiter: str, limit: int) -> list[Page]:
        provider = harness.provider()
        store = provider.store(bucket.name)
        pages: list[Page] = []
        token = None
        with translating(provider, "list", bucket.name):
            while not pages or token is not None:
                pages.append(store.list_page(prefix="", delimiter=delimiter, token=token, limit=limit))
                token = pages[-1].next_token
                assert len(pages) < 100
        return pages
