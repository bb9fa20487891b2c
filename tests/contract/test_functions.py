"""The contract of functions and invokers over every provider."""

from polyserve.testing.functions import FunctionsContract
from polyserve.testing.invokers import InvokerContract


class TestFunctions(FunctionsContract):
    pass


class TestInvoker(InvokerContract):
    pass
