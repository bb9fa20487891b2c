"""XGBoost's and LightGBM's models are served as ONNX where they answer as before."""

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer, load_diabetes

from polyserve.model import package

BOTH = ["predict", "predict_proba"]
NAMES = np.array(["setosa", "versicolor", "virginica"])
QUIET = {"verbose": -1, "n_estimators": 5}


@pytest.fixture(scope="session")
def cancer():
    return load_breast_cancer(return_X_y=True)


@pytest.fixture(scope="session")
def diabetes():
    return load_diabetes(return_X_y=True)


def check(model, rows, ask, *, methods=None) -> None:
    """Check that a model is compiled, and answers all rows as it is and as ONNX alike."""
    plain = package(model, name="model", sample=rows[::4][:60], methods=methods, compile="off")
    made = package(model, name="model", sample=rows[::4][:60], methods=methods)
    assert made.compilation.compiled, made.compilation.reason
    assert made.signature == plain.signature
    assert made.size_bytes < plain.size_bytes
    expected, got = ask(plain, rows), ask(made, rows)
    for name, want in expected.items():
        assert got[name].dtype == want.dtype
        if want.dtype.kind == "f":
            assert np.allclose(got[name], want, rtol=1e-5, atol=2e-7)
        else:
            assert np.array_equal(got[name], want)


def reason(model, rows) -> str:
    made = package(model, name="model", sample=rows[::4][:60])
    assert not made.compilation.compiled
    return made.compilation.reason


def test_xgboost_classifiers(cancer, iris, ask):
    gaps = iris[0].copy()
    gaps[::7, 1] = np.nan
    for objective in ("multi:softprob", "multi:softmax"):
        check(xgboost.XGBClassifier(n_estimators=5, objective=objective).fit(*iris), iris[0], ask, methods=BOTH)
    check(xgboost.XGBClassifier(n_estimators=5).fit(*cancer), cancer[0], ask, methods=BOTH)
    check(xgboost.XGBClassifier(n_estimators=5).fit(gaps, iris[1]), gaps, ask, methods=BOTH)
    check(xgboost.XGBRFClassifier(n_estimators=5).fit(*cancer), cancer[0].astype("f4"), ask, methods=BOTH)


def test_xgboost_stops_at_its_best_round(cancer, ask):
    rows, labels = cancer
    model = xgboost.XGBClassifier(n_estimators=40, early_stopping_rounds=2)
    model.fit(rows, labels, eval_set=[(rows[:50], labels[50:100])], verbose=0)

    assert model.best_iteration < 37
    check(model, rows, ask, methods=BOTH)


@pytest.mark.parametrize("objective", ["reg:squarederror", "count:poisson", "reg:absoluteerror"])
def test_xgboost_regressors(diabetes, objective, ask):
    check(xgboost.XGBRegressor(n_estimators=5, objective=objective).fit(*diabetes), diabetes[0], ask)


def test_lightgbm_classifiers(cancer, iris, ask):
    gaps = iris[0].copy()
    gaps[::7, 1] = np.nan
    check(lightgbm.LGBMClassifier(**QUIET).fit(*cancer), cancer[0], ask, methods=BOTH)
    check(lightgbm.LGBMClassifier(**QUIET).fit(iris[0], NAMES[iris[1]]), iris[0], ask, methods=BOTH)
    check(lightgbm.LGBMClassifier(**QUIET).fit(gaps, iris[1]), gaps, ask, methods=BOTH)


@pytest.mark.parametrize("objective", ["regression", "poisson", "quantile"])
def test_lightgbm_regressors(diabetes, objective, ask):
    check(lightgbm.LGBMRegressor(objective=objective, **QUIET).fit(*diabetes), diabetes[0], ask)


def test_columns_of_a_frame(iris, ask):
    frame = pd.DataFrame(iris[0], columns=["a", "b", "c", "d"])

    check(xgboost.XGBClassifier(n_estimators=5).fit(frame, iris[1]), frame, ask, methods=BOTH)
    check(lightgbm.LGBMClassifier(**QUIET).fit(frame, iris[1]), frame, ask, methods=BOTH)


def test_what_has_no_counterpart_says_so(diabetes, cancer):
    rows, target = diabetes
    forest = lightgbm.LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, **QUIET).fit(*cancer)

    assert "XGBoost's gblinear" in reason(
        xgboost.XGBRegressor(n_estimators=5, booster="gblinear").fit(rows, target), rows
    )
    assert "-1.0 stands for a missing value" in reason(
        xgboost.XGBRegressor(n_estimators=5, missing=-1).fit(rows, target), rows
    )
    assert "its mean of trees" in reason(forest, cancer[0])
    assert "a zero stands for a missing value" in reason(
        lightgbm.LGBMRegressor(zero_as_missing=True, **QUIET).fit(np.round(rows, 1), target), np.round(rows, 1)
    )
