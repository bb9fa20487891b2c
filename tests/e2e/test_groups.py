"""A model in sequence on local: cut, deployed, asked from another process, and destroyed without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import polyserve
from polyserve_local.inventory import inventory

ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype("f4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(4, 4)).astype("f4"), f"w{number}") for number in (1, 2)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["rows", "w1"], ["middle"]),
            helper.make_node("MatMul", ["middle", "w2"], ["answer"]),
        ],
        "chain",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None, 4])],
        weights,
    )
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    np.save(tmp_path / "rows.npy", ROWS)
    return path


def shell(*words: str, directory: Path) -> object:
    done = subprocess.run(
        [sys.executable, "-m", "polyserve", *words, "--json"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_cut_in_two_is_deployed_and_asked_as_one_from_any_process(model, tmp_path):
    whole = polyserve.package(str(model), sample=ROWS)
    expected = ROWS @ np.random.default_rng(0).normal(size=(4, 4)).astype("f4")
    made = shell("partition", "chain.onnx", "--parts", "2", "--data", "rows.npy", "-o", "parts.zip", directory=tmp_path)

    deployed = shell("deploy", "parts.zip", directory=tmp_path)

    assert made["how"] == "sequence"
    assert deployed["package_digest"] == made["package_digest"]
    assert [part["name"] for part in deployed["parts"]] == ["chain-part-1", "chain-part-2"]
    listed = {each["name"]: each["phase"] for each in shell("list", directory=tmp_path)}
    assert listed == dict.fromkeys(["chain", "chain-part-1", "chain-part-2"], "ready")
    answered = shell("invoke", "chain", "--file", "rows.npy", directory=tmp_path)
    with polyserve.connect("chain") as group, polyserve.connect("chain-part-1") as first:
        np.testing.assert_allclose(group.invoke(ROWS), answered, rtol=1e-6)
        np.testing.assert_allclose(first.invoke(ROWS), expected, rtol=1e-4)
        assert group.endpoint.signature.inputs == whole.signature.inputs
    assert shell("deploy", "parts.zip", directory=tmp_path)["changed"] is False

    shell("destroy", "chain", "--yes", directory=tmp_path)

    assert list(inventory(Path(os.environ["POLYSERVE_HOME"]))) == []
