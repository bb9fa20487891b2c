"""A skops file becomes a package that answers as its estimator does, and is loaded without running any code of it."""

import zipfile

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.model.flavors import caution
from polyserve.runtime.host import Host
from polyserve.runtime.loading import LoadError


@pytest.fixture
def saved(tmp_path):
    def save(model, name="model"):
        skops.io.dump(model, tmp_path / f"{name}.skops")
        return tmp_path / f"{name}.skops"

    return save


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own_function(rows):
    return rows


@pytest.mark.parametrize(
    ("model", "load"),
    [
        (make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)), load_digits),
        (make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=20, random_state=0)), load_digits),
        (make_pipeline(StandardScaler(), SVC(random_state=0)), load_breast_cancer),
    ],
    ids=["regression", "perceptron", "support vectors"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_classifier_answers_as_it_does(model, load, saved, ask):
    rows, labels = load(return_X_y=True)
    model.fit(rows, labels)

    made = package(saved(model), sample=rows[:8])

    assert np.array_equal(ask(made, rows)["predict"], model.predict(rows))


def test_a_regressor_over_a_frame_answers_as_it_does(saved, ask):
    frame, target = load_diabetes(return_X_y=True, as_frame=True)
    model = Ridge().fit(frame, target)

    made = package(saved(model), sample=frame[:8])

    assert np.allclose(ask(made, frame)["predict"], model.predict(frame))


def test_columns_of_text_and_several_methods(saved, ask):
    frame = pd.DataFrame({"city": ["Rome", "Oslo", "Rome", "Bern"], "income": [1.5, 2.5, 3.5, 0.5]})
    columns = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["income"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, ["no", "yes", "no", "yes"])

    answer = ask(package(saved(model), sample=frame, methods=["predict", "predict_proba"]), frame)

    assert answer["predict"].tolist() == model.predict(frame).tolist()
    assert np.allclose(answer["predict_proba"], model.predict_proba(frame))


def test_it_is_safe_where_a_pickle_of_it_is_not_and_says_so(saved, regression, iris, tmp_path):
    joblib.dump(regression, tmp_path / "model.joblib")

    safe = package(saved(regression), sample=iris[0][:4]).manifest
    unsafe = package(tmp_path / "model.joblib", sample=iris[0][:4]).manifest

    assert (safe.safe, safe.loader["format"]) == (True, "skops")
    assert [line.partition("==")[0] for line in safe.requirements if "skops" in line] == ["skops"]
    assert (unsafe.safe, unsafe.loader["format"]) == (False, "pickle")
    assert caution(safe) is None
    assert "which runs code when it is loaded" in caution(unsafe)
    assert "save it with skops.io.dump, or convert it to ONNX where it has trees" in caution(unsafe)


def test_saved_twice_it_is_one_package(saved, regression, iris):
    first = saved(regression, "first")
    second = saved(regression, "second")
    assert first.read_bytes() != second.read_bytes()

    digests = {package(path, name="regression", sample=iris[0][:4]).digest for path in (first, second)}

    assert len(digests) == 1


def test_the_parts_of_a_calibrated_classifier_are_trusted_too(saved, iris, ask):
    model = CalibratedClassifierCV(LogisticRegression(max_iter=200), cv=2).fit(*iris)

    made = package(saved(model), sample=iris[0][:4])

    assert made.manifest.safe
    assert np.array_equal(ask(made, iris[0])["predict"], model.predict(iris[0]))


def test_types_that_are_not_safe_are_refused_with_the_way_out(saved, iris, forest):
    model = make_pipeline(FunctionTransformer(own_function), LogisticRegression(max_iter=200)).fit(*iris)

    assert "own_function): convert the model to ONNX" in refusal(saved(model))
    assert "(sklearn.tree._tree.Tree): convert the model to ONNX with skl2onnx and package that" in refusal(
        saved(forest)
    )


def test_a_file_that_somebody_put_other_types_into_is_not_loaded_by_the_function(saved, regression, iris, tmp_path):
    import json
    import shutil
    from dataclasses import replace

    from polyserve.runtime import manifest

    made = package(saved(regression), sample=iris[0][:4])
    evil = tmp_path / "evil"
    shutil.copytree(made.root, evil, copy_function=shutil.copyfile)
    with zipfile.ZipFile(evil / "model/model.skops") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts["schema.json"])
    schema |= {"__class__": "Popen", "__module__": "subprocess"}
    parts["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(evil / "model/model.skops", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    (evil / "manifest.json").unlink()
    (evil / "manifest.json").write_bytes(replace(made.manifest, files=manifest.file_entries(evil)).to_json())

    with pytest.raises(LoadError, match=r"UntrustedTypesFoundException.*subprocess\.Popen"):
        Host(evil, sink=lambda line: None).load()


def test_what_is_no_skops_file_or_holds_no_fitted_estimator_is_refused(saved, tmp_path):
    (tmp_path / "broken.skops").write_bytes(b"PK")

    assert "'broken.skops' is no readable skops file" in refusal(tmp_path / "broken.skops")
    assert "save the model again with skops.io.dump" in refusal(tmp_path / "broken.skops")
    assert "is not fitted" in refusal(saved(LogisticRegression()))
    assert "not a scikit-learn estimator" in refusal(saved({"a": 1}))


def test_without_skops_it_is_named_with_the_way_to_get_it(saved, regression, monkeypatch):
    path = saved(regression)
    monkeypatch.setattr("polyserve.model.flavors.sklearn.find_spec", lambda name: None if name == "skops" else name)

    with pytest.raises(MissingDependencyError, match="pip install skops"):
        package(path)
