"""A PyTorch module is served as ONNX where it answers as before."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from polyserve.model import package


@pytest.fixture(scope="session")
def images():
    return load_digits().data.astype("f4")


def network(*layers) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer() for layer in layers)).eval()


def modules():
    yield network(lambda: nn.Linear(64, 32), nn.ReLU, lambda: nn.Linear(32, 10))
    yield network(lambda: nn.Linear(64, 10), lambda: nn.Softmax(1))
    yield network(lambda: nn.Unflatten(1, (1, 8, 8)), lambda: nn.Conv2d(1, 2, 3), nn.GELU, nn.Flatten)


def test_modules_answer_any_number_of_rows_as_before(images, ask):
    for module in modules():
        plain = package(module, name="module", sample=images[:40], compile="off")
        made = package(module, name="module", sample=images[:40])
        assert made.compilation.compiled, made.compilation.reason

        assert made.signature == plain.signature
        for count in (1, 7, len(images)):
            expected, got = ask(plain, images[:count]), ask(made, images[:count])
            for name, want in expected.items():
                assert np.allclose(got[name], want, rtol=1e-4, atol=1e-4)
        assert not any(line.startswith("torch") for line in made.manifest.requirements)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_answers_any_number_of_rows_as_before(images, ask, tmp_path):
    torch.jit.save(torch.jit.script(next(modules())), tmp_path / "network.ts")

    made = package(tmp_path / "network.ts", sample=images[:40])

    assert made.compilation.compiled, made.compilation.reason
    plain = package(tmp_path / "network.ts", sample=images[:40], compile="off")
    for count in (1, 7, len(images)):
        expected, got = ask(plain, images[:count]), ask(made, images[:count])
        for name, want in expected.items():
            assert np.allclose(got[name], want, rtol=1e-4, atol=1e-4)


def test_the_same_module_is_the_same_package(images):
    digests = {package(next(modules()), name="module", sample=images[:40]).digest for _ in range(2)}

    assert len(digests) == 1


def test_what_the_exporter_does_not_know_is_a_reason(images):
    module = network(
        lambda: nn.Linear(64, 8), lambda: nn.Unflatten(1, (2, 2, 2)), lambda: nn.FractionalMaxPool2d(1, (1, 1))
    )

    made = package(module, name="module", sample=images[:40, :])

    assert not made.compilation.compiled
    assert "PyTorch cannot export it (" in made.compilation.reason
