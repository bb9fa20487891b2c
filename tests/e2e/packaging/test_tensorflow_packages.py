"""Keras models of a user's own classes, and the packages of two processes; TensorFlow, Keras and LiteRT in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyserve.model import ModelPackage
from polyserve.runtime.messages import Response

LAYERS = """
import keras


def bent(x):
    return keras.ops.relu(x) + 1


@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, rows):
        return 2 * rows


keras.saving.register_keras_serializable("mine")(bent)
"""
MAKE = """
import sys
import keras, numpy as np, tensorflow as tf
from layers import Twice, bent
from polyserve.model import package
keras.utils.set_random_seed(0)
own = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=bent), Twice()])
plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
sample = np.linspace(0, 1, 8).reshape(2, 4)
plain.export("exported", verbose=False)
lite = tf.lite.TFLiteConverter.from_keras_model(plain).convert()
made = {
    "own": package(own, name="own", sample=sample),
    "plain": package(plain, name="plain", sample=sample),
    "exported": package("exported", sample=sample),
    "lite": package(lite, name="lite", sample=sample),
}
import json
print(json.dumps({name: [str(one.root), one.digest, one.manifest.safe] for name, one in made.items()}))
"""
SERVE = """
import json, sys
from pathlib import Path
from polyserve.model import ModelPackage
from polyserve.runtime.host import Host
made = ModelPackage.open(sys.argv[1])
host = Host(made.root, sink=lambda line: None)
host.load()
response = host.handle(made.golden_request())
frameworks = sorted({"tensorflow", "keras", "torch", "ai_edge_litert", "layers"} & set(sys.modules))
told = {"status": response.status, "headers": dict(response.headers), "body": response.body.decode()}
print(json.dumps(told | {"frameworks": frameworks}))
"""


def told(code: str, *arguments: object, cwd: Path, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, dict]:
    """Package the same models in two processes, each with a directory and a hash seed of its own."""
    found = {}
    for seed in ("1", "2"):
        root = tmp_path_factory.mktemp(f"process-{seed}")
        (root / "layers.py").write_text(LAYERS)
        cache = {"POLYSERVE_CACHE": str(root / "cache"), "PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
        found[seed] = told(MAKE, cwd=root, **cache)
    return found


def test_models_made_in_two_processes_are_the_same_packages(made):
    digests = {seed: {name: digest for name, (_, digest, _) in models.items()} for seed, models in made.items()}

    # A SavedModel is taken as it is, and TensorFlow writes another one each time.
    for name in ("own", "plain", "lite"):
        assert digests["1"][name] == digests["2"][name], name


@pytest.mark.parametrize(
    ("name", "frameworks"),
    [
        ("own", ["keras", "layers", "tensorflow"]),
        ("plain", ["keras", "tensorflow"]),
        ("exported", ["keras", "tensorflow"]),
        ("lite", ["ai_edge_litert"]),
    ],
)
def test_another_process_answers_as_this_one_and_imports_only_what_the_model_needs(made, name, frameworks, tmp_path):
    one = ModelPackage.open(made["1"][name][0])

    answered = told(SERVE, one.root, cwd=tmp_path)

    response = Response(status=answered["status"], headers=answered["headers"], body=answered["body"].encode())
    assert one.difference(response) is None
    assert set(answered["frameworks"]) <= set(frameworks)
    one.verify()


def test_classes_of_the_users_own_travel_as_code_and_are_no_safe_model(made):
    root, _, safe = made["1"]["own"]

    assert (Path(root) / "code" / "layers.py").read_text() == LAYERS
    assert not safe
    assert made["1"]["plain"][2]
