"""Models of each framework, deployed to `local` and asked over HTTP, answer what the framework itself does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris

import polyserve


@dataclass
class Trained:
    """A model as its user has it, what to ask of it, and what the framework answers."""

    model: Any
    rows: Any
    expected: dict[str, Any]
    format: str
    options: dict[str, Any]


def onnx_model(tmp_path: Any) -> Trained:
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    rows, labels = load_digits(return_X_y=True)
    rows = rows.astype("f4")
    model = RandomForestClassifier(8, random_state=0).fit(rows, labels)
    proto = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    expected = {"label": model.predict(rows), "probabilities": model.predict_proba(rows)}
    return Trained(proto, rows, expected, "onnx", {})


def xgboost_model(tmp_path: Any) -> Trained:
    from xgboost import XGBClassifier

    frame, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    model = XGBClassifier(n_estimators=6).fit(frame, labels)
    model.save_model(tmp_path / "model.ubj")
    expected = {"predict": model.predict(frame), "predict_proba": model.predict_proba(frame)}
    return Trained(tmp_path / "model.ubj", frame, expected, "ubj", {"methods": list(expected)})


def lightgbm_model(tmp_path: Any) -> Trained:
    from lightgbm import LGBMRegressor

    frame, target = load_diabetes(return_X_y=True, as_frame=True)
    model = LGBMRegressor(n_estimators=6, num_leaves=7, verbose=-1).fit(frame, target)
    return Trained(model, frame, {"predict": model.predict(frame)}, "text", {})


def skops_model(tmp_path: Any) -> Trained:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=300).fit(rows, np.array(["setosa", "versicolor", "virginica"])[labels])
    skops.io.dump(model, tmp_path / "model.skops")
    return Trained(tmp_path / "model.skops", rows, {"predict": model.predict(rows)}, "skops", {})


@pytest.fixture
def deployed() -> Iterator[Callable[..., polyserve.Deployment]]:
    made = []

    def deploy(package: Any) -> polyserve.Deployment:
        made.append(polyserve.deploy(package, memory_mb=512))
        return made[-1]

    yield deploy
    for deployment in made:
        deployment.destroy()
        deployment.close()


@pytest.mark.parametrize("train", [onnx_model, xgboost_model, lightgbm_model, skops_model])
def test_a_deployed_model_answers_what_its_framework_does(train, deployed, tmp_path):
    trained = train(tmp_path)
    package = polyserve.package(trained.model, name="trained", sample=trained.rows[:8], **trained.options)

    assert (package.manifest.loader["format"], package.manifest.safe) == (trained.format, True)
    plan = polyserve.plan(package, memory_mb=512)
    assert not [warning for warning in plan.warnings if "trust" in warning]
    answer = deployed(package).invoke(trained.rows)
    for name, expected in trained.expected.items():
        got = answer[name] if isinstance(answer, dict) else answer
        if expected.dtype.kind == "f":
            assert np.allclose(got, expected, rtol=1e-5, atol=1e-6)
        else:
            assert got.tolist() == expected.tolist()


def test_a_plan_names_the_safe_format_of_a_model_that_runs_code(forest, iris):
    plan = polyserve.plan(polyserve.package(forest, name="forest", sample=iris[0][:4]))

    (warning,) = [warning for warning in plan.warnings if "trust" in warning]
    assert warning.startswith("the model is a pickle, which runs code when it is loaded")
    assert "save it with skops.io.dump, or convert it to ONNX where it has trees" in warning
