"""A scikit-learn model is served as ONNX where it answers as before, and as it is otherwise."""

import json

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from polyserve.errors import PackageError
from polyserve.model import ModelPackage, package
from polyserve.model.compile import SAMPLE_ROWS, forests, trees
from polyserve.runtime import protocol
from polyserve.runtime.host import Host
from polyserve.runtime.messages import Request

BOTH = ["predict", "predict_proba"]
NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.fixture(scope="session")
def digits():
    rows, labels = load_digits(return_X_y=True)
    # Between whole numbers, so that float32 rounds.
    return rows + np.random.default_rng(0).random(rows.shape), labels


@pytest.fixture(scope="session")
def diabetes():
    return load_diabetes(return_X_y=True)


@pytest.fixture(scope="session")
def table(iris):
    frame = pd.DataFrame(iris[0], columns=["a", "b", "c", "d"])
    return frame.assign(city=np.where(np.arange(150) % 3, "Rome", "Oslo"), rooms=np.arange(150) % 4)


def both(model, sample, **options) -> tuple[ModelPackage, ModelPackage]:
    """Return the package of a model as it is, and as it is compiled."""
    plain = package(model, name="model", sample=sample, compile="off", **options)
    made = package(model, name="model", sample=sample, **options)
    assert made.compilation.compiled, made.compilation.reason
    return plain, made


def reason(model, sample, **options) -> str:
    """Return why a model is served as it is, after looking that it is."""
    made = package(model, name="model", sample=sample, **options)
    assert made == package(model, name="model", sample=sample, compile="off", **options)
    assert not made.compilation.compiled
    assert "\n" not in made.compilation.reason
    return made.compilation.reason


def status(made: ModelPackage, rows) -> int:
    """Return with which HTTP status a package answers rows."""
    host = Host(made.root, sink=lambda line: None)
    host.load()
    described = {
        "name": "input",
        "datatype": "FP64",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = json.dumps({"inputs": [described]}).encode()
    headers = {protocol.HEADER_LENGTH: str(len(head)), "content-type": protocol.BINARY_TYPE}
    return host.handle(
        Request(path=f"/v2/models/{made.name}/infer", headers=headers, body=head + rows.tobytes())
    ).status


def test_a_forest_answers_every_row_to_the_bit_and_is_smaller(digits, ask):
    model = RandomForestClassifier(20, random_state=0).fit(*digits)

    plain, made = both(model, digits[0][:40], methods=BOTH)
    answer = ask(made, digits[0])

    assert np.array_equal(answer["predict"], model.predict(digits[0]))
    assert np.array_equal(answer["predict_proba"], model.predict_proba(digits[0]))
    report = made.compilation
    assert (report.rows, report.largest_difference) == (40, 0.0)
    assert report.probes > 1000
    assert report.original.digest == plain.digest
    assert made.size_bytes == report.onnx.size_bytes < plain.size_bytes / 3


def test_the_compiled_package_says_what_it_is_and_keeps_the_originals_golden_answer(forest, iris):
    plain, made = both(forest, iris[0][:40])

    manifest = made.manifest
    assert manifest.flavor == "onnx"
    assert manifest.safe is True
    assert manifest.row_wise is True
    assert manifest.requirements == (f"numpy=={np.__version__}", f"onnxruntime=={onnxruntime.__version__}")
    assert manifest.origin["digest"] == plain.digest
    assert manifest.origin["compiled"]["from"] == "sklearn"
    assert {path for path in manifest.files if "sample" not in path} == {"model/model.onnx"}
    assert {path: entry for path, entry in manifest.files.items() if "sample" in path} == {
        path: entry for path, entry in plain.manifest.files.items() if "sample" in path
    }


def test_the_same_model_is_the_same_bytes_and_they_tell_no_version_of_a_converter(regression, iris):
    first, second = (package(regression, sample=iris[0][::3], name="iris") for _ in range(2))

    proto = onnx.load(first.root / "model" / "model.onnx")

    assert first.digest == second.digest
    assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("polyserve", "", "")
    assert not any(node.name or node.doc_string for node in proto.graph.node)


def classifiers(iris):
    rows, labels = iris
    return {
        "text labels": LogisticRegression(max_iter=500).fit(rows, NAMES[labels]),
        "boolean labels": DecisionTreeClassifier(random_state=0).fit(rows, labels == 1),
        "int32 labels": RandomForestClassifier(5, random_state=0).fit(rows, labels.astype("i4")),
        "float labels": RandomForestClassifier(5, random_state=0).fit(rows, labels.astype("f8")),
        "leaves of several classes": RandomForestClassifier(5, max_depth=2, random_state=0).fit(rows, labels),
        "boosting": GradientBoostingClassifier(n_estimators=5, random_state=0).fit(rows, labels),
        "boosting of two": GradientBoostingClassifier(n_estimators=5, loss="exponential").fit(rows, labels > 0),
        "histograms": HistGradientBoostingClassifier(max_iter=5).fit(rows, NAMES[labels]),
        "histograms of two": HistGradientBoostingClassifier(max_iter=5).fit(rows, labels > 0),
        "scaled": make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels),
        "scaled forest": make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).fit(rows, labels),
        "network": MLPClassifier((8,), max_iter=20, random_state=0, n_iter_no_change=20, tol=0).fit(rows, labels),
    }


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer:sklearn.exceptions.ConvergenceWarning")
def test_classifiers_keep_names_datatypes_and_shapes_and_answer_the_same(iris, ask):
    rows = np.concatenate([iris[0], iris[0] + 0.01])

    for title, model in classifiers(iris).items():
        plain, made = both(model, iris[0][::3], methods=BOTH)
        expected, got = ask(plain, rows), ask(made, rows)

        assert made.signature == plain.signature, title
        assert np.array_equal(got["predict"], expected["predict"]), title
        assert got["predict"].dtype == expected["predict"].dtype, title
        assert np.allclose(got["predict_proba"], expected["predict_proba"], rtol=1e-12, atol=1e-12), title


def test_regressors_keep_the_shape_of_their_answer(diabetes, ask):
    rows, target = diabetes
    models = [
        RandomForestRegressor(5, random_state=0).fit(rows, target),
        ExtraTreesRegressor(5, random_state=0, max_depth=3).fit(rows, target),
        GradientBoostingRegressor(n_estimators=5).fit(rows, target),
        HistGradientBoostingRegressor(max_iter=5, loss="poisson").fit(rows, target),
        LinearRegression().fit(rows, target),
        Ridge().fit(rows, target[:, None]),
    ]

    for model in models:
        plain, made = both(model, rows[:40])

        assert made.signature == plain.signature, model
        assert np.allclose(ask(made, rows)["predict"], ask(plain, rows)["predict"], rtol=1e-12), model


def test_float32_integers_and_lists_go_in_as_they_are(digits, iris, ask):
    small = digits[0][:200].astype("f4")
    whole = digits[0][:200].astype("i8")
    for sample in (small, whole, iris[0].tolist()):
        labels = digits[1][:200] if len(sample) == 200 else iris[1]
        model = RandomForestClassifier(5, random_state=0).fit(sample, labels)

        plain, made = both(model, sample[:40], methods=BOTH)

        assert made.signature == plain.signature
        assert np.array_equal(ask(made, sample)["predict_proba"], model.predict_proba(sample))


def test_a_frames_columns_keep_their_types_and_serving_needs_no_pandas(table, iris, ask):
    encoded = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city"]), (StandardScaler(), ["a", "b", "c", "d", "rooms"])
    )
    models = [
        make_pipeline(encoded, LogisticRegression()).fit(table, NAMES[iris[1]]),
        make_pipeline(encoded, RandomForestClassifier(5, random_state=0)).fit(table, iris[1]),
        RandomForestClassifier(5, random_state=0).fit(table[["a", "b", "c", "d"]], iris[1]),
    ]

    for model in models:
        columns = [name for name in table.columns if name in getattr(model, "feature_names_in_", table.columns)]
        plain, made = both(model, table[columns][::3])

        assert made.signature == plain.signature
        assert ask(made, table[columns])["predict"].tolist() == model.predict(table[columns]).tolist()
        rows = table[columns].to_dict("records")
        assert ask(made, rows)["predict"].tolist() == model.predict(table[columns]).tolist()
        assert not any(line.startswith(("pandas", "scikit-learn")) for line in made.manifest.requirements)


# How numpy says that a number is too large, before scikit-learn refuses it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, 1e308])
def test_numbers_that_the_model_refused_are_refused_still(value, iris, forest, regression):
    rows = np.where(np.arange(4) == 2, value, iris[0][:1])

    for model in (forest, regression):
        plain, made = both(model, iris[0][::3])

        assert status(made, rows) == status(plain, rows)


def test_missing_values_go_where_the_model_learnt_and_no_rows_are_refused(iris, ask):
    gaps = iris[0].copy()
    gaps[::3, 1] = gaps[1::4, 2] = np.nan
    models = [
        HistGradientBoostingClassifier(max_iter=5).fit(gaps, iris[1]),
        RandomForestClassifier(5, random_state=0).fit(gaps, iris[1]),
        make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)).fit(gaps, iris[1]),
    ]

    for model in models:
        plain, made = both(model, gaps[:40])

        assert np.array_equal(ask(made, gaps)["predict"], model.predict(gaps))
        assert status(made, gaps[:0]) == status(plain, gaps[:0])


def test_what_has_no_counterpart_is_served_as_it_is_and_the_reason_said(iris, forest, regression):
    rows, labels = iris
    sample = rows[:40]
    texts = [f"{word} {number}" for word in ("red", "green", "blue") for number in range(20)]
    text = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels[::3][:20].tolist() * 3)
    logged = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(rows, labels)

    assert "FunctionTransformer is not supported" in reason(logged, sample)
    assert "decision_function() of LogisticRegression has no counterpart" in reason(
        regression, sample, methods=["decision_function"]
    )
    assert "TfidfVectorizer splits text by rules that ONNX has not" in reason(text, texts)
    assert "answers 2 targets" in reason(RandomForestRegressor(2).fit(rows, rows[:, :2]), sample)


def test_a_converter_that_is_wrong_on_rows_the_sample_does_not_have_is_found_out(iris):
    # skl2onnx gives another label than scikit-learn where no class, or every class, is certain.
    model = SGDClassifier(loss="log_loss", random_state=0).fit(*iris)

    told = reason(model, iris[0][:60])

    assert "on rows of the sample, " in told
    assert "'predict' is " in told


def wrong_comparison(patch):
    patch.setitem(trees._MODES, "<=", trees._MODES["<"])


def without_rounding(patch):
    patch.setattr(forests, "as_float32", lambda nodes, rows: rows)


def rounded_thresholds(patch):
    whole = trees.Tree
    patch.setattr(forests, "Tree", lambda **of: whole(**{**of, "threshold": np.asarray(of["threshold"], "f4")}))


def missing_the_other_way(patch):
    whole = trees.Tree
    patch.setattr(forests, "Tree", lambda **of: whole(**{**of, "missing_left": ~of["missing_left"]}))


def a_leaf_that_is_a_little_off(patch):
    whole = trees.Tree
    patch.setattr(forests, "Tree", lambda **of: whole(**{**of, "value": np.asarray(of["value"]) * (1 + 1e-5)}))


@pytest.mark.parametrize(
    "lie", [wrong_comparison, without_rounding, rounded_thresholds, missing_the_other_way, a_leaf_that_is_a_little_off]
)
def test_a_converter_that_lies_is_found_out_though_the_sample_agrees(lie, diabetes, monkeypatch):
    rows, target = diabetes
    model = RandomForestRegressor(5, random_state=0).fit(rows, target)
    assert package(model, sample=rows[:40]).compilation.compiled

    lie(monkeypatch)

    assert "'predict' is " in reason(model, rows[:40])


def test_auto_wants_a_sample_of_enough_rows_and_onnx_takes_any(forest, iris):
    few = iris[0][: SAMPLE_ROWS - 1]

    assert f"{SAMPLE_ROWS - 1} rows proves too little: pass {SAMPLE_ROWS} or more" in reason(forest, few)
    assert package(forest, sample=few[:1]).compilation.tried is False
    assert "pass sample=X[:100]" in package(forest).compilation.reason
    assert package(forest, sample=few, compile="onnx").manifest.flavor == "onnx"


def test_onnx_refuses_where_auto_falls_back(forest, iris, regression):
    with pytest.raises(
        PackageError, match=r"cannot be compiled: there is no sample .* compile='off' to serve it as it"
    ):
        package(forest, name="iris", compile="onnx")
    with pytest.raises(PackageError, match=r"decision_function\(\) of LogisticRegression has no counterpart"):
        package(regression, sample=iris[0][:40], methods=["decision_function"], compile="onnx")
    with pytest.raises(PackageError, match="models of flavor python have no counterpart"):
        package(len, name="length", sample=[1, 2], compile="onnx")
    with pytest.raises(PackageError, match="compile='fast' is none of 'auto', 'onnx', 'off'"):
        package(forest, sample=iris[0][:40], compile="fast")


def test_a_package_is_compiled_when_asked_and_left_alone_otherwise(forest, iris):
    plain, made = both(forest, iris[0][:40])

    assert package(plain) is plain
    assert package(plain, compile="onnx") == made
    assert package(made, compile="onnx") is made


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(regression, forest, iris, monkeypatch):
    from polyserve.model import compile as compiling

    monkeypatch.setattr(compiling, "find_spec", lambda name: None)

    told = reason(regression, iris[0][:40])

    assert told.endswith("not installed: pip install onnx onnxruntime")
    with pytest.raises(PackageError, match="pip install onnx onnxruntime"):
        package(forest, sample=iris[0][:40], compile="onnx")


def test_trees_need_no_skl2onnx_and_everything_else_says_so(regression, forest, iris, monkeypatch):
    from polyserve.model.compile import sklearn

    monkeypatch.setattr(sklearn, "find_spec", lambda name: None)

    assert package(forest, sample=iris[0][:40]).compilation.compiled
    assert reason(regression, iris[0][:40]).endswith("needs skl2onnx, which is not installed: pip install skl2onnx")


def test_converting_warns_nobody_and_writes_nothing(iris, capfd):
    model = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).fit(*iris)

    both(model, iris[0][::3])

    assert capfd.readouterr() == ("", "")


def test_what_a_converter_does_not_expect_is_a_reason_not_a_failure(forest, iris, monkeypatch):
    monkeypatch.setattr(forests, "_trees", lambda estimator: estimator.gone)

    assert "its converter failed (AttributeError: " in reason(forest, iris[0][:40])
