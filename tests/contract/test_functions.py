"""The contract of functions and invokers over every provider."""

from polyserve.testing.functions import FunctionsContract
from polyserve.testing.invokers import InvokerContract
from polyserve.testing.models import ModelFilesContract


class TestFunctions(FunctionsContract):
    pass


class TestInvoker(InvokerContract):
    pass


class TestModelFiles(ModelFilesContract):
    pass
