"""The contract of object stores over every provider."""

from polyserve.testing.stores import ObjectStoreContract


class TestStore(ObjectStoreContract):
    pass
