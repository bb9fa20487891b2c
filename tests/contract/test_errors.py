"""The contract of errors over every provider."""

from polyserve.testing.errors import ErrorContract


class TestErrors(ErrorContract):
    pass
