"""A TensorFlow Lite model becomes a package that LiteRT answers for as TensorFlow does, of float, quantized or fixed inputs."""

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.runtime.messages import RequestError

pytestmark = [
    # What the converter says to those who call it.
    pytest.mark.filterwarnings("ignore:Statistics for quantized inputs"),
    pytest.mark.filterwarnings("ignore:.*np.object0:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return (load_digits().data / 16)[:64]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Return a small network; what it says matters, not whether it is right."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,), name="pixels"), keras.layers.Dense(16, "relu"), keras.layers.Dense(10, "softmax")]
    return keras.Sequential(layers)


def answers(model: keras.Model, rows: np.ndarray) -> np.ndarray:
    return model(rows.astype("f4"), training=False).numpy()


@pytest.fixture(scope="module")
def plain(model) -> bytes:
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


@pytest.fixture(scope="module")
def quantized(model, rows) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None].astype("f4")] for row in rows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def converted(function, *specs) -> bytes:
    concrete = tf.function(function, input_signature=specs, autograph=False).get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_answers_as_the_one_it_was_converted_from(model, plain, rows, ask, tmp_path):
    (tmp_path / "digits.tflite").write_bytes(plain)

    made = package(tmp_path / "digits.tflite", sample=rows[:4])

    assert made.name == "digits"
    assert made.manifest.safe
    np.testing.assert_allclose(ask(made, rows)["output_0"], answers(model, rows), rtol=1e-5, atol=1e-6)


def test_bytes_are_the_package_that_their_file_is(plain, rows, tmp_path):
    (tmp_path / "digits.tflite").write_bytes(plain)

    made = package(plain, name="digits", sample=rows[:4])

    assert made.manifest.flavor == "tflite"
    assert made == package(tmp_path / "digits.tflite", sample=rows[:4])


def test_the_signature_is_known_without_a_sample(plain):
    made = package(plain, name="digits")

    [given], [answered] = made.signature.inputs, made.signature.outputs
    assert (given.name, given.datatype, given.shape) == ("pixels", "FP32", (-1, 64))
    assert (answered.name, answered.datatype, answered.shape) == ("output_0", "FP32", (-1, 10))


def test_only_litert_and_numpy_are_locked(plain):
    locked = [line.partition("==")[0] for line in package(plain, name="digits").manifest.requirements]

    assert locked == ["ai-edge-litert", "numpy"]


def test_float64_rows_are_rounded_and_refused_where_they_overflow(plain, rows, ask):
    made = package(plain, name="digits", sample=rows[:4])

    assert rows.dtype == np.float64
    with pytest.raises(RequestError, match="expected FP32, got FP64: 1e\\+300 at index 0 would change"):
        ask(made, np.full((1, 64), 1e300))


def test_a_quantized_model_takes_and_gives_its_own_integers(quantized, rows, ask):
    pixels = np.round(rows * 255 - 128).astype("i1")
    interpreter = litert.Interpreter(model_content=quantized)
    runner = interpreter.get_signature_runner()

    made = package(quantized, name="digits", sample=pixels[:4])
    answer = ask(made, pixels)["output_0"]

    assert [spec.datatype for spec in (*made.signature.inputs, *made.signature.outputs)] == ["INT8", "INT8"]
    assert np.array_equal(answer, runner(pixels=pixels)["output_0"])
    with pytest.raises(RequestError, match="would change"):
        ask(made, rows)


def test_a_model_of_one_row_a_call_takes_many(ask):
    made = package(
        converted(lambda x: {"twice": 2 * x}, tf.TensorSpec([1, 3], tf.float32, name="x")),
        name="twice",
        sample=np.ones((2, 3)),
    )
    rows = np.arange(12.0).reshape(4, 3)

    answer = ask(made, rows)

    assert np.array_equal(next(iter(answer.values())), 2 * rows)
    assert made.manifest.row_wise


def test_several_inputs_and_outputs_keep_their_names(ask):
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {"sums": keras.layers.Dense(2)(both), "same": keras.layers.Identity()(both)}
    model = keras.Model([left, right], outputs)
    raw = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    rows = {"left": np.ones((4, 3)), "right": np.arange(8.0).reshape(4, 2)}

    answer = ask(package(raw, name="both", sample=rows), rows)

    assert np.array_equal(answer["same"], np.hstack([rows["left"], rows["right"]]))
    only = package(raw, name="both", sample=rows, methods=["same"])
    assert [spec.name for spec in only.signature.outputs] == ["same"]


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda raw: b"no model", {}, "it lacks the mark TFL3"),
        (lambda raw: raw[:200], {}, "cannot be run by LiteRT"),
        (lambda raw: raw, {"methods": ["label"]}, "has no output 'label': pass methods= with some of output_0"),
        (lambda raw: raw, {"files": "labels.txt"}, "takes no further files"),
        (lambda raw: raw, {"sample": [["text"]]}, "expected FP32"),
        (lambda raw: raw, {"sample": [[1.0, 2.0]]}, r"expected shape [-1, 64], got [1, 2]"),
    ],
    ids=["other bytes", "cut off", "method", "files", "text", "shape"],
)
def test_what_does_not_fit_is_refused(plain, tmp_path, change, options, expected):
    path = tmp_path / "digits.tflite"
    path.write_bytes(change(plain))

    assert expected in refusal(path, **options)


def test_a_model_is_not_packaged_where_litert_is_missing(plain, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.tflite.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install ai-edge-litert"):
        package(plain, name="digits")
