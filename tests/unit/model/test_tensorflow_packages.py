"""A Keras model or a SavedModel becomes a package that answers as it does, and brings no code that Keras would not trust."""

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.runtime.messages import RequestError

# Of TensorFlow's variables, whose `__array__` is older than numpy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    rows, labels = load_digits(return_X_y=True)
    return rows / 16, labels


@pytest.fixture(scope="module")
def model(digits) -> keras.Model:
    """Train a small network on the digits, with dropout, which would show where it is not off."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(32, "relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*digits, epochs=8, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def expected(model, digits) -> np.ndarray:
    answer = model(digits[0].astype("f4"), training=False).numpy()
    assert (answer.argmax(1) == digits[1]).mean() > 0.8
    return answer


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> dict[str, Path]:
    """Save the model in every form that Keras has; the HDF5 of before with the warning that it is."""
    root = tmp_path_factory.mktemp("saved")
    paths = {"keras": root / "digits.keras", "h5": root / "digits.h5", "directory": root / "digits"}
    model.save(paths["keras"])
    model.save(paths["h5"])
    model.export(paths["directory"], verbose=False)
    return paths


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["object", "keras", "h5", "directory"])
def test_every_form_answers_as_the_model_does(form, model, saved, digits, expected, ask):
    made = package(saved.get(form, model), name="digits", sample=digits[0][:8])

    [answer] = ask(made, digits[0]).values()

    assert made.manifest.flavor == "tensorflow"
    assert made.manifest.safe
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-6)


def test_a_file_is_the_package_that_the_object_is(model, saved, digits):
    made = package(model, name="digits", sample=digits[0][:2])

    assert made == package(str(saved["keras"]), sample=digits[0][:2])


def test_what_the_model_was_trained_with_stays_behind(model, digits):
    made = package(model, name="digits", sample=digits[0][:2])

    with zipfile.ZipFile(made.root / "model/model.keras") as archive:
        weights, config = archive.read("model.weights.h5"), archive.read("config.json")
    assert b"optimizer" not in weights
    assert b"compile_config" not in config


@pytest.mark.parametrize("form", ["object", "directory"])
def test_the_signature_is_known_without_a_sample(form, model, saved):
    made = package(saved.get(form, model), name="digits")

    [given], [answered] = made.signature.inputs, made.signature.outputs
    assert (given.name, given.datatype, given.shape) == ("pixels", "FP32", (-1, 64))
    assert (answered.datatype, answered.shape) == ("FP32", (-1, 10))


def test_float64_rows_are_rounded_and_refused_where_they_overflow(model, digits, ask):
    made = package(model, name="digits", sample=digits[0][:2])

    assert digits[0].dtype == np.float64
    with pytest.raises(RequestError, match=r"expected FP32, got FP64: 1e\+300 at index 0 would change"):
        ask(made, np.full((1, 64), 1e300))


@pytest.mark.parametrize("form", ["object", "directory"])
def test_several_inputs_and_outputs_keep_their_names(form, ask, tmp_path):
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {"sums": keras.layers.Dense(2)(both), "same": keras.layers.Identity()(both)}
    model = keras.Model([left, right], outputs)
    if form == "directory":
        model.export(tmp_path / "both", verbose=False)
    rows = {"left": np.ones((4, 3)), "right": np.arange(8.0).reshape(4, 2)}

    made = package(model if form == "object" else tmp_path / "both", name="both", sample=rows)

    assert {spec.name for spec in made.signature.inputs} == {"left", "right"}
    assert np.array_equal(ask(made, rows)["same"], np.hstack([rows["left"], rows["right"]]))


def test_a_saved_model_answers_the_outputs_that_are_asked_for(tmp_path, ask):
    class Words(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")], autograph=False)
        def count(self, words):
            return {"length": tf.strings.length(words), "upper": tf.strings.upper(words)}

    words = Words()
    tf.saved_model.save(words, tmp_path / "words", signatures={"serving_default": words.count})

    made = package(tmp_path / "words", sample=["a", "bcd"], methods=["upper"])

    assert ask(made, ["kind", "word"])["upper"].tolist() in (["KIND", "WORD"], [b"KIND", b"WORD"])


def test_rows_that_do_not_go_together_are_the_callers_fault(tmp_path, ask):
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    keras.Model([left, right], keras.layers.Add()([left, right])).export(tmp_path / "sum", verbose=False)
    made = package(tmp_path / "sum", sample={"left": np.ones((2, 2)), "right": np.ones((2, 2))})

    with pytest.raises(AssertionError, match="expected inputs of the same number of rows"):
        ask(made, {"left": np.ones((2, 2)), "right": np.ones((3, 2))})


# --- what is refused --------------------------------------------------------------------------------------------------------------------


def test_a_lambda_layer_is_refused_in_every_form_and_the_graph_of_it_is_taken(tmp_path, ask):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    model.save(tmp_path / "twice.keras")
    model.save(tmp_path / "twice.h5")
    model.export(tmp_path / "twice", verbose=False)

    for form in (model, tmp_path / "twice.keras", tmp_path / "twice.h5"):
        told = refusal(form, sample=[[1.0, 2.0]])
        assert "has a Lambda layer, whose Python code would run" in told
        assert "model.export(directory)" in told
    [answer] = ask(package(tmp_path / "twice", sample=[[1.0, 2.0]]), [[3.0, 4.0]]).values()
    assert answer.tolist() == [[6.0, 8.0]]


def test_a_class_that_nobody_registered_is_refused():
    class Twice(keras.layers.Layer):
        def call(self, rows):
            return 2 * rows

    told = refusal(keras.Sequential([keras.Input((2,)), Twice()]), sample=[[1.0, 2.0]])

    assert "decorate them with @keras.saving.register_keras_serializable()" in told


def test_what_is_no_model_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"PK no more")
    (tmp_path / "broken.h5").write_bytes(b"no more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "saved_model.pb").write_bytes(b"no more")
    tf.saved_model.save(tf.Module(), tmp_path / "bare")

    assert f"cannot be loaded by Keras {keras.__version__}" in refusal(tmp_path / "broken.keras")
    assert f"cannot be loaded by Keras {keras.__version__}" in refusal(tmp_path / "broken.h5")
    assert "and no model: pass a model file" in refusal(tmp_path / "empty")
    assert "'bad' cannot be loaded as a SavedModel" in refusal(tmp_path / "bad")
    assert "'bare' has no signature, and 'serving_default' is what is served" in refusal(tmp_path / "bare")
    assert "is a class: pass a trained object of it" in refusal(keras.Sequential)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"methods": ["predict"]}, "a Keras model is called as a whole"),
        ({"files": "labels.txt"}, "takes no further files"),
        ({"sample": [["text"]]}, "expected FP32"),
        ({"sample": [[1.0, 2.0]]}, "expected shape [-1, 64], got [1, 2]"),
    ],
    ids=["methods", "files", "text", "shape"],
)
def test_what_does_not_fit_a_model_is_refused(model, options, expected):
    assert expected in refusal(model, **options)


def test_an_output_that_is_not_there_is_refused(saved):
    assert "must name some of the outputs output_0" in refusal(saved["directory"], methods=["label"])


@pytest.mark.parametrize("form", ["object", "directory"])
def test_a_model_is_not_packaged_where_its_framework_is_missing(form, model, saved, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.tensorflow.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install tensorflow-cpu"):
        package(saved.get(form, model), name="digits")
