"""The weights of a PyTorch module are stored in half precision and computed with in single."""

import numpy as np
import pytest

import polyserve
from polyserve.errors import PackageError

torch = pytest.importorskip("torch", reason="PyTorch is not part of every environment")


@pytest.fixture
def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(40, 16)).astype("f4")


def test_a_module_of_half_the_size_answers_as_well(module, rows, ask):
    with torch.no_grad():
        expected = module(torch.from_numpy(rows)).numpy()
    labels = expected.argmax(axis=1)
    original = polyserve.package(module, name="net", sample=rows[:4], compile="off")

    done = polyserve.compress(original, method="fp16", data=rows, labels=labels, max_drop=0.05)

    assert done.before.score == 1.0
    # The pickle of the module without its weights is as large as before.
    assert done.ratio < 0.8
    assert done.package.signature == original.signature
    (answer,) = ask(done.package, rows).values()
    np.testing.assert_allclose(answer, expected, atol=5e-3)
    assert not np.array_equal(answer, expected)


def test_the_answer_of_one_that_is_compressed_twice_or_a_program_is_a_refusal(module, rows):
    labels = np.zeros(len(rows), "i8")
    original = polyserve.package(module, name="net", sample=rows[:4], compile="off")
    half = polyserve.compress(original, method="fp16", data=rows, labels=labels, max_drop=1).package
    program = torch.export.export(module.eval(), (torch.from_numpy(rows),))

    with pytest.raises(PackageError, match="has weights in half precision already"):
        polyserve.compress(half, method="fp16", data=rows, labels=labels)
    with pytest.raises(PackageError, match=r"is a program \(export\).*compile it to ONNX first"):
        polyserve.compress(
            polyserve.package(program, name="net", sample=rows, compile="off"), method="fp16", data=rows, labels=labels
        )
    with pytest.raises(
        PackageError, match="'int8' is not for a model of flavor torch, which has fp16; or compile it to ONNX"
    ):
        polyserve.compress(original, method="int8", data=rows, labels=labels)
