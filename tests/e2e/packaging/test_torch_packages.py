"""PyTorch models of a user's own classes: their modules travel, another process answers as this one does, and so does a deployment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import polyserve
from polyserve.errors import PackageError
from polyserve.model import package
from polyserve.runtime.messages import Response

NETS = """
import torch
from torch import nn

from blocks import Block


class Net(nn.Module):
    '''Two blocks; says both what it sees and how sure it is.'''

    def __init__(self, width=16):
        super().__init__()
        self.blocks = nn.Sequential(Block(64, width), Block(width, 10))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, pixels):
        logits = self.blocks(pixels) * self.scale
        return {"label": logits.argmax(1), "sure": logits.softmax(1).amax(1)}


class Sloppy(Net):
    '''Holds what no pickle can.'''

    def __init__(self):
        super().__init__()
        self.activation = lambda x: x


class Wide(Net):
    def __init__(self, width):
        super().__init__(width)
"""
BLOCKS = """
from torch import nn


class Block(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.linear = nn.Linear(inside, outside)

    def forward(self, x):
        return self.linear(x).tanh()
"""
MAKE = """
import numpy as np, torch
from nets import Net
from polyserve.model import package
torch.manual_seed(0)
net = Net()
batch = torch.export.Dim("batch")
program = torch.export.export(net.eval(), (torch.zeros(2, 64),), dynamic_shapes=({0: batch},))
sample = np.linspace(0, 1, 128).reshape(2, 64)
print([package(model, name="net", sample=sample).digest for model in (net, program)])
"""
SERVE = """
import json, sys
from pathlib import Path
from polyserve.model import ModelPackage
from polyserve.runtime.host import Host
import torch
made = ModelPackage.open(sys.argv[1])
host = Host(made.root, sink=lambda line: None)
host.load()
response = host.handle(made.golden_request())
print(json.dumps({"status": response.status, "headers": dict(response.headers), "body": response.body.decode()}))
"""


@pytest.fixture
def rows() -> np.ndarray:
    return load_digits().data[:20]


@pytest.fixture
def nets(project):
    """Put the user's modules on the path, and return the one with the classes."""
    project({"nets": NETS, "blocks": BLOCKS})
    import nets

    torch.manual_seed(0)
    return nets


def served_elsewhere(made, tmp_path: Path) -> str | None:
    """Have a process that knows nothing of the project answer the golden request, and compare."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVE, made.root], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return made.difference(Response(status=told["status"], headers=told["headers"], body=told["body"].encode()))


def test_a_module_travels_with_its_class_and_all_that_it_imports(nets, rows, tmp_path):
    net = nets.Net(width=24)

    made = package(net, sample=rows)

    assert made.name == "net"
    assert sorted(path for path in made.manifest.files if path.startswith("code/")) == [
        "code/blocks.py",
        "code/nets.py",
    ]
    assert served_elsewhere(made, tmp_path) is None


def test_a_class_travels_with_a_file_of_weights_though_it_cannot_be_pickled(nets, rows, tmp_path):
    net = nets.Sloppy()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    torch.save(net.state_dict(), tmp_path / "weights.pt")

    made = package("nets:Sloppy", sample=rows, files=tmp_path / "weights.safetensors")

    assert made == package(nets.Sloppy, sample=rows, files=tmp_path / "weights.pt")
    assert not [path for path in made.manifest.files if path.endswith(".pickle")]
    assert served_elsewhere(made, tmp_path) is None


def test_a_class_is_refused_where_it_or_its_weights_do_not_fit(nets, rows, tmp_path):
    net = nets.Wide(24)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save(net, tmp_path / "whole.pt")

    def told(kind, file) -> str:
        with pytest.raises(PackageError) as caught:
            package(kind, sample=rows, files=tmp_path / file)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "Wide() cannot be made without arguments" in told(nets.Wide, "weights.pt")
    assert "the weights in 'weights.pt' are not those of Net: size mismatch for blocks.0.linear.weight" in told(
        nets.Net, "weights.pt"
    )
    assert "which here may be what it has under 'model'" in told(nets.Net, "checkpoint.pt")
    assert "'whole.pt' cannot be read as weights alone" in told(nets.Net, "whole.pt")
    assert "is no file" in told(nets.Net, "nothing.pt")


def test_models_made_in_two_processes_are_the_same_packages(nets, tmp_path):
    told = {
        subprocess.run(
            [sys.executable, "-c", MAKE],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": str(Path(nets.__file__).parent),
                "PYTHONHASHSEED": seed,
                "POLYSERVE_CACHE": str(tmp_path / seed),
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(told) == 1


def test_a_deployment_answers_as_the_model_does(nets, rows):
    net = nets.Net().eval()
    with torch.inference_mode():
        expected = net(torch.tensor(rows, dtype=torch.float32))

    with polyserve.deploy(package(net, sample=rows[:4]), memory_mb=1024) as deployment:
        answer = deployment.invoke(rows)
        with pytest.raises(polyserve.InvalidArgumentError, match=r"expected shape \[-1, 64\], got \[1, 3\]"):
            deployment.invoke([[1.0, 2.0, 3.0]])
        deployment.destroy()

    assert np.array_equal(answer["label"], expected["label"].numpy())
    np.testing.assert_allclose(answer["sure"], expected["sure"].numpy(), rtol=1e-5)
