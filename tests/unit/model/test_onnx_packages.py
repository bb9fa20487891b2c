"""An ONNX model becomes a package that answers as onnxruntime, and the model it was converted from, do."""

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.model.onnxfile import read_header
from polyserve.runtime.loaders.onnx import open_session
from polyserve.runtime.messages import RequestError


@pytest.fixture(scope="session")
def digits():
    rows, labels = load_digits(return_X_y=True)
    return rows.astype("f4"), labels


@pytest.fixture(scope="session")
def converted(digits):
    """Return a forest over the digits, and what it is in ONNX, without ZipMap."""
    model = RandomForestClassifier(8, random_state=0).fit(*digits)
    return model, to_onnx(model, digits[0][:1], options={id(model): {"zipmap": False}}, target_opset=18)


def graph(nodes, inputs, outputs, weights=(), opset=18) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "made", inputs, outputs, list(weights))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def tensor(name, shape, sort=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, sort, shape)


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_classifier_answers_what_onnxruntime_and_scikit_learn_do(converted, digits, ask):
    model, proto = converted
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    made = package(proto, name="digits", sample=digits[0][:8])
    answer = ask(made, digits[0])

    labels, probabilities = session.run(None, {"X": digits[0]})
    assert np.array_equal(answer["label"], labels)
    assert np.array_equal(answer["label"], model.predict(digits[0]))
    assert np.allclose(answer["probabilities"], probabilities)
    assert np.allclose(answer["probabilities"], model.predict_proba(digits[0]), atol=1e-5)


def test_the_manifest_has_the_models_own_inputs_and_outputs(converted, digits):
    manifest = package(converted[1], sample=digits[0][:8]).manifest

    assert manifest.name == "onnx-model"
    assert manifest.safe is True
    assert manifest.row_wise is True
    assert manifest.loader == {"format": "onnx", "path": "model/model.onnx", "methods": ["label", "probabilities"]}
    assert manifest.requirements == (f"numpy=={np.__version__}", f"onnxruntime=={onnxruntime.__version__}")
    assert manifest.signature.to_dict() == {
        "input_kind": "array",
        "output_kind": "mapping",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }


def test_without_a_sample_the_model_itself_says_what_it_takes(converted, digits, ask):
    made = package(converted[1])

    assert made.golden_request() is None
    assert [(spec.name, spec.datatype, spec.shape) for spec in made.signature.inputs] == [("X", "FP32", (-1, 64))]
    assert np.array_equal(ask(made, digits[0][:5])["label"], converted[0].predict(digits[0][:5]))


def test_a_file_its_bytes_and_the_object_are_one_package(converted, digits, tmp_path):
    path = tmp_path / "digits.onnx"
    onnx.save(converted[1], path)

    digests = {
        package(model, name="digits", sample=digits[0][:3]).digest
        for model in (path, str(path), path.read_bytes(), converted[1])
    }

    assert len(digests) == 1
    assert package(path).name == "digits"


def test_methods_choose_outputs_and_their_order(converted, digits, ask):
    made = package(converted[1], sample=digits[0][:3], methods=["probabilities", "label"])
    one = package(converted[1], sample=digits[0][:3], methods=["label"])

    assert list(ask(made, digits[0][:3])) == ["probabilities", "label"]
    assert list(ask(made, digits[0][:3], ["label"])) == ["label"]
    assert one.signature.output_kind == "array"
    assert list(ask(one, digits[0][:3])) == ["label"]
    assert "has no output 'score': pass methods= with some of label, probabilities" in refusal(
        converted[1], methods=["score"]
    )
    assert "each one once" in refusal(converted[1], methods=["label", "label"])


def test_float64_is_rounded_to_the_models_float32_and_what_does_not_fit_is_refused(ask):
    rows, target = load_diabetes(return_X_y=True)
    model = RandomForestRegressor(8, random_state=0).fit(rows.astype("f4"), target)

    made = package(to_onnx(model, rows[:1].astype("f4"), target_opset=18), sample=rows[:8])

    assert made.signature.inputs[0].datatype == "FP32"
    assert np.array_equal(ask(made, rows)["variable"], ask(made, rows.astype("f4"))["variable"])
    assert np.allclose(ask(made, rows)["variable"].ravel(), model.predict(rows.astype("f4")), rtol=1e-5)
    with pytest.raises(RequestError, match="expected FP32, got FP64: 1e\\+300 at index 3 would change"):
        ask(made, np.where(np.arange(10) == 3, 1e300, rows[:1]))


def test_a_model_that_takes_float64_gets_it(iris, ask):
    model = LogisticRegression(max_iter=500).fit(*iris)
    proto = to_onnx(model, iris[0][:1], options={id(model): {"zipmap": False}}, target_opset=18)

    made = package(proto, sample=iris[0][:4])

    assert made.signature.inputs[0].datatype == "FP64"
    assert np.array_equal(ask(made, iris[0])["label"], model.predict(iris[0]))


@pytest.mark.parametrize("labels", [np.array([0, 1, 2]), np.array(["setosa", "versicolor", "virginica"])])
def test_probabilities_by_label_become_columns_in_the_labels_order(iris, ask, labels):
    model = LogisticRegression(max_iter=500).fit(iris[0], labels[iris[1]])
    proto = to_onnx(model, iris[0][:1].astype("f4"), target_opset=18)

    made = package(proto, sample=iris[0][:4])
    answer = ask(made, iris[0])

    assert answer["output_label"].tolist() == model.predict(iris[0]).tolist()
    assert np.allclose(answer["output_probability"], model.predict_proba(iris[0]), atol=1e-5)


@pytest.fixture(scope="session")
def table():
    frame = pd.DataFrame(
        {"city": ["Rome", "Oslo", "Rome", "Bern"], "age": [20.0, 35.0, 50.0, 65.0], "income": [1.5, 2.5, 3.5, 0.5]}
    ).astype({"age": "f4", "income": "f4"})
    columns = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age", "income"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    proto = to_onnx(model, frame[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    return frame, model, proto


def test_a_frame_is_one_input_for_each_column_and_serving_needs_no_pandas(table, ask):
    frame, model, proto = table

    made = package(proto, sample=frame)

    assert made.signature.inputs[0].to_dict() == {
        "name": "city",
        "datatype": "BYTES",
        "shape": [-1],
        "parameters": {"content_type": "str"},
    }
    assert not any(line.startswith("pandas") for line in made.manifest.requirements)
    assert ask(made, frame)["label"].tolist() == model.predict(frame).tolist()
    rows = frame.to_dict("records")
    assert np.allclose(ask(made, rows)["probabilities"], model.predict_proba(frame), atol=1e-5)


def test_several_inputs_are_a_dict_of_arrays_by_their_names(table, ask):
    frame, model, proto = table
    arrays = {name: frame[[name]].to_numpy() for name in frame.columns}
    arrays["city"] = arrays["city"].astype(object)

    made = package(proto, sample=arrays)

    assert made.signature.input_kind == "mapping"
    assert {spec.shape for spec in made.signature.inputs} == {(-1, 1)}
    assert ask(made, arrays)["label"].tolist() == model.predict(frame).tolist()


def test_what_the_model_leaves_open_is_open_and_what_it_fixes_is_fixed(ask):
    open_ended = graph([helper.make_node("Neg", ["x"], ["y"])], [tensor("x", ["n", "m"])], [tensor("y", ["n", "m"])])
    fixed = graph([helper.make_node("Neg", ["x"], ["y"])], [tensor("x", [1, 2])], [tensor("y", [1, 2])])

    free, bound = package(open_ended, sample=np.ones((2, 3))), package(fixed)

    assert free.signature.outputs[0].shape == (-1, -1)
    assert ask(free, np.ones((4, 5), "f4"))["y"].shape == (4, 5)
    assert (bound.signature.inputs[0].shape, bound.signature.outputs[0].shape) == ((1, 2), (1, 2))
    assert ask(bound, [[1.0, 2.0]])["y"].tolist() == [[-1.0, -2.0]]


def test_text_and_booleans_go_in_and_out(ask):
    both = [tensor("text", ["n"], TensorProto.STRING), tensor("flag", ["n"], TensorProto.BOOL)]
    after = [tensor("same", ["n"], TensorProto.STRING), tensor("other", ["n"], TensorProto.BOOL)]
    nodes = [helper.make_node("Identity", ["text"], ["same"]), helper.make_node("Not", ["flag"], ["other"])]
    given = {"text": np.array(["è", "b"]), "flag": np.array([True, False])}

    made = package(graph(nodes, both, after), sample=given)
    answer = ask(made, given)

    assert answer["same"].tolist() == ["è", "b"]
    assert answer["other"].tolist() == [False, True]


def with_weights_apart(path):
    weights = numpy_helper.from_array(np.arange(2000, dtype="f4").reshape(2, 1000), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = graph([node], [tensor("x", ["n", 2])], [tensor("y", ["n", 1000])], [weights])
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin")


def test_weights_in_a_file_of_their_own_travel_along(tmp_path, ask):
    with_weights_apart(tmp_path / "apart.onnx")

    made = package(tmp_path / "apart.onnx", sample=np.ones((1, 2)))

    assert {"model/model.onnx", "model/weights.bin"} <= set(made.manifest.files)
    assert ask(made, np.ones((1, 2)))["y"][0, :3].tolist() == [1000, 1002, 1004]


def test_weights_that_are_not_there_are_refused(tmp_path):
    with_weights_apart(tmp_path / "apart.onnx")
    raw = (tmp_path / "apart.onnx").read_bytes()
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "escaping.onnx").write_bytes(raw.replace(b"weights.bin", b"../ghts.bin"))

    assert "'weights.bin', which is not beside it: put it there" in refusal(tmp_path / "apart.onnx")
    assert "pass the path of its file" in refusal(raw)
    assert "'../ghts.bin', which is not beside it: save it again" in refusal(tmp_path / "escaping.onnx")


def test_a_file_newer_than_the_runtime_is_refused_with_versions_and_way_out(converted):
    newer_ir, newer_opset = onnx.ModelProto(), onnx.ModelProto()
    newer_ir.CopyFrom(converted[1])
    newer_ir.ir_version = 99
    newer_opset.CopyFrom(converted[1])
    for imported in newer_opset.opset_import:
        imported.version = 99 if imported.domain == "" else imported.version

    message = refusal(newer_ir)
    assert "of IR version 99" in message
    assert f"cannot be run by onnxruntime {onnxruntime.__version__} (Unsupported model IR version: 99" in message
    assert "export the model again for an older opset" in message
    message = refusal(newer_opset)
    assert "opset 99, cannot be run" in message
    assert "till opset" in message


def test_an_operator_that_onnxruntime_has_not_is_named():
    message = refusal(graph([helper.make_node("Nope", ["x"], ["y"])], [tensor("x", [1])], [tensor("y", [1])]))

    assert "No Op registered for Nope" in message


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", b"\x08\x07\x3a\xff"])
def test_a_file_that_is_no_onnx_model(content, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)

    assert "'broken.onnx' is no readable ONNX model" in refusal(path)


def test_bytes_that_are_no_onnx_model_and_other_objects():
    assert "a bytes is not a model that polyserve knows" in refusal(b"PK")
    assert "is no readable ONNX model" in refusal(b"\x08")
    assert "a dict is not the ONNX model" in refusal({}, flavor="onnx")


def test_answers_that_no_tensor_can_hold_are_left_out_by_methods(ask):
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"]), helper.make_node("Neg", ["x"], ["y"])]
    listed = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"])
    model = graph(nodes, [tensor("x", ["n"])], [listed, tensor("y", ["n"])])

    message = refusal(model, sample=np.ones(2))

    assert "gives 's' as seq(tensor(float)), which no answer can carry: pass methods=['y']" in message
    assert ask(package(model, sample=np.ones(2), methods="y"), [2.0])["y"].tolist() == [-2.0]


def test_an_input_that_no_request_can_carry():
    listed = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"])
    model = graph([helper.make_node("SequenceLength", ["s"], ["y"])], [listed], [tensor("y", [], TensorProto.INT64)])

    assert "takes 's' as seq(tensor(float)), which no request can carry" in refusal(model)


def test_a_sample_that_is_not_what_the_model_takes(converted):
    message = refusal(converted[1], sample=np.ones((2, 3)))

    assert "input 'X': expected shape [-1, 64], got [2, 3]" in message


def test_what_the_model_refuses_at_run_time_is_the_callers_error(ask):
    gather = helper.make_node("Gather", ["w", "i"], ["y"])
    weights = numpy_helper.from_array(np.arange(4, dtype="f4"), "w")
    index = tensor("i", ["n"], TensorProto.INT64)
    made = package(graph([gather], [index], [tensor("y", ["n"])], [weights]), sample=[1, 2])

    assert ask(made, [3])["y"].tolist() == [3.0]
    with pytest.raises(AssertionError, match=r"the model refuses the input.*INVALID_ARGUMENT"):
        ask(made, [99])


def test_files_and_a_missing_onnxruntime(converted, tmp_path, monkeypatch):
    assert "takes no further files" in refusal(converted[1], files=tmp_path)
    monkeypatch.setattr("polyserve.model.flavors.onnx.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        package(converted[1])


def test_the_header_is_read_without_the_onnx_package(converted):
    header = read_header(converted[1].SerializeToString())

    assert (header.ir_version, header.external) == (converted[1].ir_version, ())
    assert header.opset in {each.version for each in converted[1].opset_import if each.domain == ""}


@pytest.mark.parametrize(
    "form",
    [np.asarray, list, pd.DataFrame, lambda rows: {"X": rows}],
    ids=["array", "nested lists", "frame", "dict by the input's name"],
)
def test_rows_may_come_in_any_form(converted, digits, ask, form):
    rows = digits[0][:6]
    given = form(rows) if form is not list else rows.tolist()

    made = package(converted[1], sample=given if not isinstance(given, pd.DataFrame) else given.rename(columns=str))

    assert np.array_equal(ask(made, rows)["label"], converted[0].predict(rows))
    assert np.array_equal(ask(made, rows.tolist())["label"], converted[0].predict(rows))
    assert made.digest == package(converted[1], sample=rows).digest


def test_a_model_in_memory_of_more_than_protocol_buffers_hold_is_saved_in_pieces_first():
    def serialize(self, deterministic):
        raise ValueError("Failed to serialize proto")

    kind = type("ModelProto", (), {"__module__": "onnx.onnx_ml_pb2", "SerializeToString": serialize})

    assert "(Failed to serialize proto): save it with onnx.save(..., save_as_external_data=True)" in refusal(kind())


def test_a_session_has_one_thread_unless_the_environment_allows_more(converted, tmp_path, monkeypatch):
    path = tmp_path / "digits.onnx"
    onnx.save(converted[1], path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    assert open_session(path).get_session_options().intra_op_num_threads == 1

    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    assert open_session(path).get_session_options().intra_op_num_threads == 3
