"""A model becomes parts that are packages of their own and together answer as the whole, to the label and within the tolerance."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.tree import DecisionTreeClassifier

import polyserve
from polyserve.errors import PackageError
from polyserve.model.partition import parts_of

BOTH = ("predict", "predict_proba")


@pytest.fixture(scope="session")
def flowers():
    rows, labels = load_iris(return_X_y=True)
    return rows, np.array(["setosa", "versicolor", "virginica"])[labels]


@pytest.fixture(scope="session")
def patients():
    return load_diabetes(return_X_y=True)


def packaged(model, data, methods=None) -> polyserve.ModelPackage:
    model.fit(*data)
    return polyserve.package(model, name="whole", sample=data[0][::20], methods=methods, compile="off")


def refusal(model, **options) -> str:
    before = sorted(Path(os.environ["POLYSERVE_CACHE"], "packages").glob("*"))
    with pytest.raises(PackageError) as caught:
        polyserve.partition(model, **options)
    assert sorted(Path(os.environ["POLYSERVE_CACHE"], "packages").glob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "methods"),
    [
        (RandomForestClassifier(7, random_state=0), BOTH),
        (RandomForestClassifier(7, max_depth=2, random_state=0), BOTH),
        (BaggingClassifier(DecisionTreeClassifier(), 7, max_features=0.5, max_samples=0.2, random_state=0), BOTH),
        (
            VotingClassifier(
                [("a", DecisionTreeClassifier(max_depth=1)), ("b", RidgeClassifier()), ("c", RidgeClassifier(9))]
            ),
            ("predict",),
        ),
        (
            VotingClassifier(
                [("a", DecisionTreeClassifier(max_depth=2)), ("b", RandomForestClassifier(3, random_state=0))],
                voting="soft",
                weights=[2, 1],
            ),
            BOTH,
        ),
    ],
    ids=["forest", "shallow forest", "bagging", "hard voting", "soft voting"],
)
def test_an_ensemble_in_two_parts_gives_the_labels_and_probabilities_of_the_whole(flowers, ask, model, methods):
    whole = packaged(model, flowers, methods)

    done = polyserve.partition(whole, parts=2, data=flowers[0])

    answer, expected = ask(done.package, flowers[0]), ask(whole, flowers[0])
    assert (done.how, done.package.name, done.package.manifest.flavor) == ("parallel", "whole", "partitioned")
    assert answer["predict"].tolist() == expected["predict"].tolist() == model.predict(flowers[0]).tolist()
    if "predict_proba" in methods:
        np.testing.assert_allclose(answer["predict_proba"], expected["predict_proba"], rtol=1e-12)
    assert done.package.signature.outputs == whole.signature.outputs


def test_the_sums_of_grown_trees_are_whole_numbers_so_that_no_bit_differs(flowers, ask):
    whole = packaged(RandomForestClassifier(7, bootstrap=False, random_state=0), flowers, BOTH)

    parted = polyserve.partition(whole, parts=3).package

    assert ask(parted, flowers[0])["predict_proba"].tobytes() == ask(whole, flowers[0])["predict_proba"].tobytes()


@pytest.mark.parametrize(
    "model",
    [
        RandomForestRegressor(6, random_state=0),
        ExtraTreesRegressor(6, random_state=0),
        BaggingRegressor(n_estimators=6, max_features=0.5, random_state=0),
        VotingRegressor([("a", Ridge()), ("b", RandomForestRegressor(2, random_state=0))], weights=[1, 3]),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_regression_in_parts_gives_the_numbers_of_the_whole(patients, ask, model):
    whole = packaged(model, patients)

    parted = polyserve.partition(whole, parts=2, data=patients[0]).package

    np.testing.assert_allclose(ask(parted, patients[0])["predict"], model.predict(patients[0]), rtol=1e-12)


def test_every_part_is_a_package_with_a_sample_of_its_own_and_says_what_it_is_of(flowers, ask):
    whole = packaged(RandomForestClassifier(7, random_state=0), flowers)

    done = polyserve.partition(whole, parts=3)

    parts = parts_of(done.package)
    assert [part.name for part in parts] == ["whole-part-1", "whole-part-2", "whole-part-3"]
    assert [part.manifest.origin for part in parts] == [
        {"method": "part", "part": number, "of": 3, "digest": whole.digest} for number in (1, 2, 3)
    ]
    assert done.package.manifest.origin == {
        "method": "partition",
        "parts": 3,
        "how": "parallel",
        "digest": whole.digest,
    }
    # `ask` replays the part's own sample, too.
    sums = [ask(part, flowers[0])["sum"] for part in parts]
    assert np.array_equal(np.sum(sums, axis=(0, 2)), np.full(len(flowers[0]), 7.0))
    assert [part.package.digest for part in done.parts] == [part.digest for part in parts]
    assert all(part.time_ms > 0 and part.size_bytes < done.size_bytes for part in done.parts)
    assert done.time == max(part.time_ms for part in done.parts) / done.time_ms


def test_the_same_model_gives_the_same_parts_every_time(flowers, tmp_path):
    whole = packaged(RandomForestClassifier(4, random_state=0), flowers)

    digests = {polyserve.partition(whole, parts=2, into=tmp_path / place).package.digest for place in ("one", "other")}

    assert len(digests) == 1


def test_a_partitioned_package_travels_as_one_archive(flowers, tmp_path):
    done = polyserve.partition(packaged(RandomForestClassifier(4, random_state=0), flowers), parts=2)

    opened = polyserve.ModelPackage.open(done.package.save(tmp_path / "parts.zip"))

    assert opened.digest == done.package.digest
    assert [part.digest for part in parts_of(opened)] == [part.package.digest for part in done.parts]


# --- in sequence --------------------------------------------------------------------------------------------------------------


def chain(widths, *, skip: bool = False) -> onnx.ModelProto:
    """Return dense layers in a row; with `skip`, what goes in is added again at the end, so that no tensor is ever alone."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "rows"
    for number, (before, after) in enumerate(pairwise(widths)):
        weights.append(numpy_helper.from_array(random.normal(size=(before, after)).astype("f4") / before, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"t{number}"]))
        last = f"t{number}"
    if skip:
        nodes.append(helper.make_node("Add", [last, "rows"], ["sum"]))
        last = "sum"
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, widths[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None, widths[-1]])],
        weights,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rows_for(width: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(20, width)).astype("f4")


def test_an_onnx_graph_is_cut_into_pieces_of_about_the_same_weight(ask):
    rows = rows_for(16)
    whole = polyserve.package(chain([16, 64, 64, 64, 8]), name="chain", sample=rows[:4])

    done = polyserve.partition(whole, parts=2, data=rows)

    assert done.how == "sequence"
    np.testing.assert_allclose(ask(done.package, rows)["t3"], ask(whole, rows)["t3"], rtol=1e-5, atol=1e-6)
    sizes = [part.size_bytes for part in done.parts]
    assert max(sizes) < 0.65 * done.size_bytes
    first, second = (part.package.signature for part in done.parts)
    assert first.inputs == whole.signature.inputs
    assert [spec.name for spec in first.outputs] == [spec.name for spec in second.inputs]
    assert second.outputs == whole.signature.outputs
    assert done.time == pytest.approx(sum(part.time_ms for part in done.parts) / done.time_ms)


def test_a_graph_is_not_cut_where_two_tensors_are_handed_on():
    rows = rows_for(16)
    whole = polyserve.package(chain([16, 32, 16], skip=True), name="skip", sample=rows[:4])

    told = refusal(whole, parts=2)

    assert (
        "'skip' can be cut at 0 places, where one tensor alone is handed on, so into at most 1 parts: 2 were asked for"
        in told
    )


# --- what cannot be split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parts": 1}, "parts=1 must be a whole number from 2 to 99"),
        ({"parts": 5}, "RandomForestClassifier has 4 members, and 5 parts were asked for"),
        ({"parts": 2, "how": "sequence"}, "a model of flavor sklearn cannot be split in sequence"),
        ({"parts": 2, "how": "sideways"}, "how='sideways' is none of parallel, sequence and auto"),
        ({"parts": 2, "name": "x" * 60}, "is too long for the names of its parts: at most 55 characters"),
        ({"parts": 2, "data": [[1.0, 2.0]]}, "the data is not what the model takes"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_done_is_said_and_nothing_is_kept(flowers, options, told):
    whole = packaged(RandomForestClassifier(4, random_state=0), flowers)

    assert told in refusal(whole, **options)


def test_an_estimator_without_members_to_sum_is_refused_with_those_that_have_them(flowers):
    whole = packaged(GradientBoostingClassifier(n_estimators=2), flowers)

    assert (
        "GradientBoostingClassifier has no members that could be summed: the ensembles that can are RandomForest"
        in refusal(whole, parts=2)
    )


def test_a_model_of_several_targets_is_refused(patients):
    rows, values = patients
    whole = packaged(RandomForestRegressor(4), (rows, np.column_stack([values, values])))

    assert "answers several targets at once" in refusal(whole, parts=2)


def test_without_a_sample_there_must_be_data_to_prove_it_on(flowers):
    whole = polyserve.package(RandomForestClassifier(4).fit(*flowers), name="whole", compile="off")

    assert "has no sample that could prove its parts" in refusal(whole, parts=2)
    assert polyserve.partition(whole, parts=2, data=flowers[0]).package.golden_request() is not None


# --- boosters -----------------------------------------------------------------------------------------------------------------


def booster(kind: str, objective: str | None, data) -> object:
    """Return a small trained estimator of XGBoost or LightGBM."""
    import lightgbm
    import xgboost

    makers = {
        "xgboost classifier": lambda: xgboost.XGBClassifier(n_estimators=5, max_depth=3, objective=objective, n_jobs=1),
        "xgboost regressor": lambda: xgboost.XGBRegressor(n_estimators=5, max_depth=3, objective=objective, n_jobs=1),
        "lightgbm classifier": lambda: lightgbm.LGBMClassifier(n_estimators=5, num_leaves=4, verbose=-1, n_jobs=1),
        "lightgbm regressor": lambda: lightgbm.LGBMRegressor(
            n_estimators=5, num_leaves=4, objective=objective, verbose=-1, n_jobs=1
        ),
    }
    return makers[kind]().fit(*data)


@pytest.mark.parametrize(
    ("kind", "objective", "most"),
    [
        ("xgboost classifier", "binary:logistic", 2),
        ("xgboost classifier", "multi:softprob", 3),
        ("xgboost regressor", "reg:squarederror", 0),
        ("xgboost regressor", "count:poisson", 0),
        ("lightgbm classifier", None, 2),
        ("lightgbm classifier", None, 3),
        ("lightgbm regressor", "regression", 0),
        ("lightgbm regressor", "poisson", 0),
    ],
)
def test_the_rounds_of_a_booster_in_parts_give_what_the_whole_gives(patients, ask, kind, objective, most):
    rows, labels = load_iris(return_X_y=True)
    data = (rows[labels < most], labels[labels < most]) if most else patients
    model = booster(kind, objective, data)
    methods = BOTH if most else ("predict",)
    whole = polyserve.package(model, name="whole", sample=data[0][::20], methods=methods, compile="off")

    done = polyserve.partition(whole, parts=2, data=data[0])

    answer, expected = ask(done.package, data[0]), ask(whole, data[0])
    assert done.package.signature.outputs == whole.signature.outputs
    for name in methods:
        if answer[name].dtype.kind == "i":
            assert answer[name].tolist() == expected[name].tolist()
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_booster_whose_trees_are_not_simply_added_is_refused(flowers):
    import xgboost

    data = load_iris(return_X_y=True)
    dart = xgboost.XGBClassifier(n_estimators=3, booster="dart", n_jobs=1).fit(*data)
    whole = polyserve.package(dart, name="whole", sample=data[0][:4], compile="off")

    assert "is a dart booster, whose rounds are not simply added up" in refusal(whole, parts=2)
