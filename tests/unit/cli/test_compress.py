"""`polyserve compress` shows both models side by side, writes one JSON value, and refuses with the exit code for refusals."""

import json

import joblib
import numpy as np
import pytest

import polyserve


@pytest.fixture
def files(tmp_path, forest, iris):
    joblib.dump(forest, tmp_path / "flowers.joblib")
    np.save(tmp_path / "X.npy", iris[0])
    np.save(tmp_path / "y.npy", iris[1])
    return tmp_path


def test_compress_measures_before_and_after_and_saves_the_package(run, files, iris, forest):
    words = ["compress", str(files / "flowers.joblib"), "--method", "lossless", "--data", str(files / "X.npy")]
    words += ["--labels", str(files / "y.npy"), "-o", str(files / "small.zip"), "--json"]

    shown = json.loads(run(*words).stdout)

    made = polyserve.ModelPackage.open(files / "small.zip")
    assert shown["package_digest"] == shown["after"]["package_digest"] == made.digest
    assert shown["name"] == made.name == "flowers"
    assert shown["compression_ratio"] == shown["after"]["size_bytes"] / shown["before"]["size_bytes"] < 1
    assert shown["before"]["score"] == shown["after"]["score"] == forest.score(*iris)
    assert (shown["metric"], shown["rows"], shown["drop"], shown["max_drop"]) == ("accuracy", 150, 0.0, 0.005)
    assert shown["before"]["latency_ms"] > 0


def test_people_see_a_table(run, files):
    words = ["--method", "lossless", "--data", str(files / "X.npy"), "--labels", str(files / "y.npy")]

    lines = run("compress", str(files / "flowers.joblib"), *words).stdout.splitlines()

    assert lines[0].startswith("flowers compressed with lossless, C = 0.")
    assert lines[1].split() == ["package", "model", "accuracy", "p50", "ms", "p95", "ms"]
    assert [line.split()[0] for line in lines[2:4]] == ["before", "after"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "int8", "--data", "X.npy", "--labels", "y.npy"], "compile it to ONNX first"),
        (["--method", "lossless", "--data", "X.npy", "--labels", "X.npy"], "r2 compares numbers, one for one"),
    ],
    ids=["no such method for it", "labels that are none"],
)
def test_a_refusal_is_one_error_with_the_exit_code_for_refusals(run, files, monkeypatch, words, told):
    monkeypatch.chdir(files)

    refused = run("compress", "flowers.joblib", *words, "--json")

    error = json.loads(refused.stderr)["error"]
    assert (refused.exit_code, error["exit_code"], refused.stdout) == (2, 2, "")
    assert told in error["message"]
