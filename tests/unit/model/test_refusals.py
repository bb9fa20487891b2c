"""What cannot become a package is refused with one error that names the value, the limit and the way out."""

import os
import pickle
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from polyserve.errors import MissingDependencyError, NotFoundError, PackageError
from polyserve.model import package


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_does_not_exist():
    with pytest.raises(NotFoundError, match=r"'no/such/model\.joblib' does not exist.*module:attribute"):
        package("no/such/model.joblib")


def test_a_directory_that_is_no_package(tmp_path):
    assert "is no model package, it has no manifest.json" in refusal(tmp_path)


def test_a_file_of_no_known_kind(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"123")

    message = refusal(tmp_path / "weights.bin")

    assert "'weights.bin' is not a model" in message
    assert ".joblib" in message


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"a": 1}, "dict"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (None, "NoneType"),
        (np.ones(3), "ndarray"),
        (os, "module"),
    ],
    ids=["dict", "frame", "none", "array", "module"],
)
def test_an_object_that_is_no_model(model, named):
    message = refusal(model)

    assert named in message
    assert "a fitted estimator of scikit-learn, XGBoost or LightGBM" in message


def test_a_class_without_predict():
    assert "class 'dict', which has no predict(inputs)" in refusal(dict)


def test_a_file_that_holds_something_else(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))

    assert "'data.pkl' holds a dict, not a scikit-learn estimator" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(LinearRegression())[:-30]], ids=["empty", "text", "cut"]
)
def test_a_corrupt_file(tmp_path, content):
    path = tmp_path / "model.joblib"
    path.write_bytes(content)

    message = refusal(path)

    assert "'model.joblib' is no readable joblib or pickle file" in message
    assert "joblib.dump" in message


def test_a_file_that_refers_to_a_module_which_is_not_there(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"cutilities\nClean\n.")

    message = refusal(path)

    assert "refers to module 'utilities'" in message
    assert "PYTHONPATH" in message


def test_a_file_saved_by_another_scikit_learn_names_both_versions(tmp_path, monkeypatch, regression):
    import sklearn

    with monkeypatch.context() as patch:
        patch.setattr("sklearn.base.__version__", "1.2.0")
        raw = pickle.dumps(regression)
    path = tmp_path / "old.pkl"
    path.write_bytes(raw)

    message = refusal(path)

    assert "saved by scikit-learn 1.2.0" in message
    assert f"{sklearn.__version__} is installed here" in message


def test_an_estimator_that_is_not_fitted():
    assert "LogisticRegression is not fitted: call fit()" in refusal(LogisticRegression(), sample=[[1.0]])


def test_an_estimators_class():
    assert "LogisticRegression is a class" in refusal(LogisticRegression)


def test_a_method_that_the_model_has_not(iris):
    message = refusal(LinearRegression().fit(*iris), methods=["predict_proba"])

    assert "LinearRegression has no method 'predict_proba'" in message
    assert "predict" in message.partition("methods=")[2]


def test_a_class_of_the_script_that_saved_it(tmp_path, monkeypatch):
    script = ModuleType("__main__")
    script.Mine = type("Mine", (LinearRegression,), {"__module__": "__main__"})
    monkeypatch.setitem(sys.modules, "__main__", script)
    path = tmp_path / "mine.pkl"
    path.write_bytes(pickle.dumps(script.Mine()))
    del script.Mine

    message = refusal(path)

    assert "'mine.pkl' needs 'Mine' of the script that saved it: put it in a module" in message


@pytest.mark.parametrize("methods", [[], ["predict", "predict"]], ids=["none", "twice"])
def test_methods_that_make_no_outputs(regression, methods):
    assert "must name at least one method, and each one once" in refusal(regression, methods=methods)


def test_a_sample_that_the_model_refuses(regression):
    message = refusal(regression, sample=np.ones((2, 3)))

    assert "does not take the sample" in message
    assert ".." not in message
    assert "3 features" in message


@pytest.mark.parametrize(
    "sample", [[], np.empty((0, 4)), pd.DataFrame({"a": []}), {}], ids=["list", "array", "frame", "dict"]
)
def test_an_empty_sample(regression, sample):
    assert "sample" in refusal(regression, sample=sample)


@pytest.mark.parametrize("sample", [object(), [[1, 2], [3]], [["a", 1.5]]], ids=["object", "ragged", "mixed"])
def test_a_sample_that_no_request_can_carry(regression, sample):
    assert "the sample cannot be sent as a request" in refusal(regression, sample=sample)


def test_a_sample_that_is_too_large(regression):
    message = refusal(regression, sample=np.full((20_000, 4), 0.123456789012345))

    assert "20000 rows" in message
    assert "1048576" in message
    assert "sample=X[:8]" in message


def test_a_lambda_inside_a_pipeline(iris):
    model = make_pipeline(FunctionTransformer(lambda rows: rows), LinearRegression()).fit(*iris)

    message = refusal(model, sample=iris[0][:2])

    assert "Pipeline cannot be pickled" in message
    assert "top of a module" in message


def test_a_lambda():
    message = refusal(lambda rows: rows, name="identity", sample=[1])

    assert "a lambda cannot be imported where the model is served" in message


def test_a_local_function():
    def local(rows):
        return rows

    assert "'local', which is local to" in refusal(local, sample=[1])


def test_a_function_that_is_something_else_where_it_is_found(project):
    project({"shadowed": "def answer(rows): return rows\nkept = answer\ndef answer(rows): return 2"})
    import shadowed

    assert "is something else than what was passed" in refusal(shadowed.kept, sample=[1])


def test_a_function_of_an_interactive_session(monkeypatch):
    main = type(sys)("__main__")
    exec("def answer(rows): return rows", main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)

    message = refusal(main.answer, sample=[1])

    assert "interactive session" in message
    assert "'module:attribute'" in message


def test_an_object_that_cannot_be_pickled(project):
    source = """
        import threading

        class Model:
            def __init__(self):
                self.lock = threading.Lock()

            def predict(self, rows):
                return rows
        """
    project({"holding": source})
    import holding

    message = refusal(holding.Model(), sample=[1])

    assert "Model cannot be pickled" in message
    assert "load(model_dir)" in message


def test_a_module_whose_source_cannot_be_found(monkeypatch, iris):
    made_up = type(sys)("made_up")
    exec("def clean(rows): return rows", made_up.__dict__)
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    model = make_pipeline(FunctionTransformer(made_up.clean), LinearRegression()).fit(*iris)

    message = refusal(model, sample=iris[0][:2])

    assert "module 'made_up'" in message
    assert "code=[...]" in message


@pytest.mark.parametrize(
    "name", ["", "Iris", "-iris", "iris-", "1iris", "a_b", "a/b", "é", "a" * 64], ids=lambda name: f"name {name[:8]!r}"
)
def test_a_name_that_breaks_the_rule(regression, name):
    message = refusal(regression, name=name)

    assert repr(name) in message
    assert "1 to 63 lower-case letters" in message


def test_a_name_that_cannot_be_derived(tmp_path, regression):
    path = tmp_path / "42.pkl"
    path.write_bytes(pickle.dumps(regression))

    assert "no name can be made of '42': pass name=" in refusal(path)


def test_a_scikit_learn_file_where_scikit_learn_is_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "model.joblib"
    path.write_bytes(b"")
    monkeypatch.setattr("polyserve.model.flavors.sklearn.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        package(path)


def test_a_reference_to_a_module_that_is_not_there():
    assert "there is no module 'no_such_module'" in refusal("no_such_module:model")


def test_a_reference_to_an_attribute_that_is_not_there(project):
    project({"typo": "def predict(rows): return rows"})

    message = refusal("typo:predct")

    assert "'typo' has no 'predct'; it has predict" in message


def test_a_reference_to_a_module_that_fails(project):
    project({"broken_import": "1 / 0", "needs": "import not_installed_anywhere"})

    assert "cannot be imported (ZeroDivisionError" in refusal("broken_import:model")
    assert "the module imports 'not_installed_anywhere', which is not installed" in refusal("needs:model")


def test_an_unknown_flavor(regression):
    message = refusal(regression, flavor="skleran")

    assert "unknown flavor 'skleran'" in message
    assert "sklearn, python" in message


def test_files_that_nothing_would_read(regression, tmp_path, project):
    project({"plain": "def answer(rows): return rows"})

    assert "takes no further files" in refusal(regression, files=tmp_path)
    assert "no load(model_dir)" in refusal("plain:answer", sample=[1], files=tmp_path)


def test_files_that_are_not_there(project, tmp_path):
    project({"loading": "class Model:\n    def load(self, model_dir): pass\n    def predict(self, rows): return rows"})

    assert "is neither a file nor a directory" in refusal("loading:Model", sample=[1], files=tmp_path / "none")


def test_code_that_is_not_there(regression, tmp_path):
    assert "is neither a file nor a directory" in refusal(regression, code=[tmp_path / "none.py"])


def test_a_requirement_that_is_not_installed(regression):
    assert "is not installed here" in refusal(regression, requirements=["no-such-distribution"])


def test_a_requirement_of_another_version(regression):
    message = refusal(regression, requirements=["numpy==1.0"])

    assert "'numpy==1.0' is not what is installed here" in message
    assert np.__version__ in message


def test_a_requirement_that_is_none(regression):
    assert "is no requirement" in refusal(regression, requirements=["numpy = 1"])


def test_options_that_cannot_change_a_package(regression):
    made = package(regression)

    assert "a package is never changed, so sample would have no effect" in refusal(made, sample=[[1.0]])


def test_a_python_model_without_a_sample(project):
    project({"nosample": "def answer(rows): return rows"})

    assert "pass a sample" in refusal("nosample:answer")


def test_a_model_with_columns_of_any_kind_without_a_sample(iris):
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(make_column_transformer((StandardScaler(), [0, 1])), LinearRegression()).fit(*iris)

    assert "pass a sample" in refusal(model)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, regression):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYSERVE_CACHE", str(tmp_path / "file"))

    assert "set POLYSERVE_CACHE" in refusal(regression)
