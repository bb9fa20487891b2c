"""A package becomes a smaller one that says what it was, answers as well on labelled rows, and is not kept where it does not."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge, RidgeClassifier

import polyserve
from polyserve.errors import PackageError
from polyserve.model.compress import methods_of, quality
from polyserve.model.deriving import opened

HIDDEN = 192


def network(layers, inputs, *, decide: bool) -> onnx.ModelProto:
    """Return an ONNX model of dense layers with ReLU between them; with `decide` it answers the place of the largest."""
    nodes, weights, last = [], [], "rows"
    for number, (matrix, bias) in enumerate(layers):
        weights += [
            numpy_helper.from_array(matrix.astype("f4"), f"w{number}"),
            numpy_helper.from_array(bias.astype("f4"), f"b{number}"),
        ]
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Add", [f"m{number}", f"b{number}"], [f"a{number}"]))
        last = f"a{number}"
        if number + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [last], [f"r{number}"]))
            last = f"r{number}"
    sort, shape = TensorProto.FLOAT, [None, layers[-1][0].shape[1]]
    if decide:
        nodes.append(helper.make_node("ArgMax", [last], ["label"], axis=1, keepdims=0))
        last, sort, shape = "label", TensorProto.INT64, [None]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info(last, sort, shape)],
        weights,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="session")
def digits():
    rows, labels = load_digits(return_X_y=True)
    return rows.astype("f4"), labels


@pytest.fixture(scope="session")
def classifier(digits) -> onnx.ModelProto:
    """Return a network that reads digits: a random layer, and one that was fitted to it."""
    rows, labels = digits
    random = np.random.default_rng(0)
    matrix, bias = random.normal(size=(64, HIDDEN)) / 64, random.normal(size=HIDDEN)
    hidden = np.maximum(rows @ matrix + bias, 0)
    fitted = RidgeClassifier(alpha=0.01).fit(hidden, labels)
    return network([(matrix, bias), (fitted.coef_.T, fitted.intercept_)], 64, decide=True)


@pytest.fixture
def original(classifier, digits) -> polyserve.ModelPackage:
    return polyserve.package(classifier, name="digits", sample=digits[0][:8])


@pytest.fixture(scope="session")
def delicate() -> onnx.ModelProto:
    """Return a classifier of two classes whose weights differ by less than half precision can hold."""
    return network([(np.repeat([[1.0, 1.0001]], 64, axis=0), np.zeros(2))], 64, decide=True)


def refusal(model, **options) -> str:
    before = set(kept())
    with pytest.raises(PackageError) as caught:
        polyserve.compress(model, **options)
    assert "\n" not in str(caught.value)
    assert set(kept()) == before
    return str(caught.value)


def kept() -> list[str]:
    return sorted(path.name for path in Path(os.environ["POLYSERVE_CACHE"], "packages").glob("*"))


@pytest.mark.parametrize(
    ("method", "most", "operator"),
    [("fp16", 0.55, "Cast"), ("int8", 0.4, "MatMulInteger"), ("int8-static", 0.4, "QuantizeLinear")],
)
def test_a_network_becomes_smaller_and_reads_digits_as_well(original, digits, ask, method, most, operator):
    rows, labels = digits

    done = polyserve.compress(original, method=method, data=rows, labels=labels, max_drop=0.02)

    assert done.ratio == done.after.size_bytes / done.before.size_bytes < most
    assert done.before.score > 0.9
    assert done.drop == done.before.score - done.after.score <= 0.02
    assert done.metric == "accuracy"
    assert min(done.before.latency_ms, done.after.latency_ms) > 0
    model = onnx.load(done.package.root / "model/model.onnx")
    assert operator in {node.op_type for node in model.graph.node}
    assert done.package.signature == original.signature
    answered = ask(done.package, rows[:200])["label"]
    assert np.mean(answered == labels[:200]) > 0.9


def test_the_new_package_says_what_it_was_made_of_and_is_the_same_every_time(original, digits, tmp_path):
    made = [
        polyserve.compress(original, method="int8", data=digits[0], labels=digits[1], into=tmp_path / place).package
        for place in ("one", "other")
    ]

    assert made[0].manifest.origin == {"method": "int8", "digest": original.digest}
    assert made[0].digest == made[1].digest != original.digest
    assert made[0].root == tmp_path / "one" / made[0].digest
    assert made[0].name == "digits"


def test_half_precision_computes_in_single_so_rows_are_answered_alone_as_among_others(original, digits):
    half = polyserve.compress(original, method="fp16", data=digits[0], labels=digits[1]).package

    assert half.manifest.row_wise


def test_a_model_that_gets_worse_than_it_may_is_refused_and_not_kept(delicate):
    rows = np.abs(np.random.default_rng(1).normal(size=(50, 64))).astype("f4")
    package = polyserve.package(delicate, name="delicate", sample=rows[:4])

    told = refusal(package, method="fp16", data=rows, labels=np.ones(50, "i8"))

    assert "accuracy goes from 1.0000 to 0.0000, a drop of 1.0000, and 0.005 is allowed" in told
    assert "nothing was kept" in told


def test_what_may_drop_is_the_callers_to_say(delicate):
    rows = np.abs(np.random.default_rng(1).normal(size=(50, 64))).astype("f4")

    done = polyserve.compress(delicate, method="fp16", data=rows, labels=np.ones(50, "i8"), max_drop=1, name="delicate")

    assert done.drop == 1.0
    assert done.package.name == "delicate"


def test_a_lossless_method_needs_no_labels_and_changes_no_bit(digits, ask):
    rows, labels = digits
    forest = RandomForestClassifier(8, random_state=0).fit(rows, labels)
    original = polyserve.package(forest, methods=["predict", "predict_proba"], sample=rows[:8])

    done = polyserve.compress(original, method="lossless")

    before, after = ask(original, rows), ask(done.package, rows)
    assert done.ratio < 0.3
    assert (done.metric, done.drop, done.before.score) == (None, None, None)
    assert all(before[name].tobytes() == after[name].tobytes() for name in ("predict", "predict_proba"))
    assert "holds a compressed file already" in refusal(done.package, method="lossless")


def test_a_model_file_is_packaged_with_the_first_rows_as_its_sample(classifier, digits, tmp_path):
    onnx.save(classifier, tmp_path / "reader.onnx")

    done = polyserve.compress(str(tmp_path / "reader.onnx"), method="fp16", data=digits[0], labels=digits[1])

    assert done.package.name == "reader"
    assert done.package.golden_request() is not None


def test_a_package_in_the_cache_is_known_by_the_first_of_its_digest(original):
    assert opened(original.digest[:12]).digest == original.digest
    with pytest.raises(PackageError, match="no package in the cache whose digest begins with 'ffffffffffff'"):
        opened("f" * 12)


def test_numbers_are_scored_by_what_they_explain_or_by_their_error():
    rows, labels = load_diabetes(return_X_y=True)
    random = np.random.default_rng(0)
    matrix = random.normal(size=(10, 128)) * 3
    hidden = np.maximum(rows @ matrix, 0)
    fitted = Ridge(0.01).fit(hidden, labels)
    model = network([(matrix, np.zeros(128)), (fitted.coef_[:, None], np.array([fitted.intercept_]))], 10, decide=False)
    package = polyserve.package(model, name="diabetes", sample=rows[:4])

    explained = polyserve.compress(package, method="fp16", data=rows, labels=labels)
    error = polyserve.compress(package, method="fp16", data=rows, labels=labels, metric="rmse")

    assert (explained.metric, error.metric) == ("r2", "rmse")
    assert explained.before.score == pytest.approx(fitted.score(hidden, labels), abs=1e-4)
    assert error.drop == pytest.approx((error.after.score - error.before.score) / error.before.score)


def test_trees_have_no_weights_that_a_quantizer_could_take(digits):
    from skl2onnx import to_onnx

    model = RandomForestClassifier(4, max_depth=4, random_state=0).fit(*digits)
    trees = to_onnx(model, digits[0][:1], options={id(model): {"zipmap": False}}, target_opset=18)
    package = polyserve.package(trees, name="trees", sample=digits[0][:4])

    for method in ("fp16", "int8"):
        told = refusal(package, method=method, data=digits[0], labels=digits[1])
        assert "its operators are" in told
        assert "TreeEnsembleClassifier" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "int4"}, "there is no method 'int4': there are fp16, int8, int8-static, lossless"),
        ({"method": "lossless"}, "is not for a model of flavor onnx, which has fp16, int8, int8-static"),
        ({"labels": None}, "pass data= and labels="),
        ({"data": None}, "pass data= and labels="),
        ({"labels": [1, 2, 3]}, "there are 3 labels for 1797 rows of data"),
        ({"labels": [[1, 2]] * 1797}, "accuracy needs one label for each answer"),
        ({"labels": ["one"] * 1797}, "the labels are text ('one'), and the model answers int64"),
        ({"labels": [float("nan")] * 1797}, "the labels hold NaN or infinity"),
        ({"max_drop": -0.1}, "max_drop=-0.1 must be a number of at least 0"),
        ({"metric": "f1"}, "there is no metric 'f1': there are accuracy, r2, rmse"),
        ({"output": "probabilities"}, "the model has no output 'probabilities' to score: it has label"),
        ({"data": [[1.0] * 63] * 1797}, "the data is not what the model takes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_said_before_anything_is_kept(original, digits, changes, told):
    options = {"method": "fp16", "data": digits[0], "labels": digits[1], **changes}

    assert told in refusal(original, **options)


@pytest.mark.parametrize(
    ("labels", "answers", "metric", "expected"),
    [
        (["a", "b"], ["a", "a"], "accuracy", 0.5),
        ([0, 2], [[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]], "accuracy", 1.0),
        ([0, 1], [0.2, 0.4], "accuracy", 0.5),
        ([True, False], [True, True], "accuracy", 0.5),
        ([1.0, 2.0, 3.0], [[1.0], [2.0], [4.0]], "r2", 0.5),
    ],
    ids=["text", "probabilities", "one probability", "booleans", "numbers"],
)
def test_labels_are_counted_and_numbers_are_measured(labels, answers, metric, expected):
    wanted, answered = quality.checked_labels(labels, len(labels)), np.asarray(answers)

    assert quality.choose("auto", wanted, answered) == metric
    assert quality.score(metric, wanted, answered) == pytest.approx(expected)


def test_every_method_says_what_it_does():
    assert all(method.title for flavor in ("onnx", "sklearn") for method in methods_of(flavor).values())
    assert methods_of("python") == {}
