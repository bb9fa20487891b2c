"""A LightGBM model becomes a package that answers as LightGBM does, and holds no code."""

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import package
from polyserve.runtime.messages import RequestError

SMALL = {"n_estimators": 6, "num_leaves": 7, "random_state": 0, "verbose": -1}


@pytest.fixture(scope="session")
def cancer() -> tuple[pd.DataFrame, np.ndarray]:
    rows, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    return rows, labels.to_numpy()


@pytest.fixture(scope="session")
def binary(cancer):
    return lightgbm.LGBMClassifier(**SMALL).fit(cancer[0].to_numpy(), cancer[1])


@pytest.fixture(scope="session")
def named(cancer):
    return lightgbm.LGBMClassifier(**SMALL).fit(*cancer)


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("objective", ["multiclass", "multiclassova"])
def test_a_classifier_of_digits_answers_as_it_does(objective, ask):
    rows, labels = load_digits(return_X_y=True)
    model = lightgbm.LGBMClassifier(**SMALL, objective=objective).fit(rows[:600], labels[:600])

    made = package(model, sample=rows[:8], methods=["predict", "predict_proba"])
    answer = ask(made, rows)

    assert np.array_equal(answer["predict"], model._Booster.predict(rows).argmax(axis=1))
    assert np.array_equal(answer["predict_proba"], model._Booster.predict(rows))


@pytest.mark.parametrize(
    "labels",
    [np.array(["benign", "malign"]), np.array(["benign", "malign"], object), np.array([7, 3]), np.array([False, True])],
    ids=["text", "text as objects", "numbers", "booleans"],
)
def test_labels_of_any_sort_are_answered_as_they_were_given(cancer, ask, labels):
    frame, target = cancer[0], labels[cancer[1]]
    model = lightgbm.LGBMClassifier(**SMALL).fit(frame, target)

    answer = ask(package(model, sample=frame[:8], methods=["predict", "predict_proba"]), frame)

    assert answer["predict"].tolist() == model.predict(frame).tolist()
    assert np.array_equal(answer["predict_proba"], model.predict_proba(frame))


def test_labels_that_no_answer_can_carry_are_refused(cancer):
    days = np.array(["2026-01-01", "2026-01-02"], "datetime64[D]")
    model = lightgbm.LGBMClassifier(**SMALL).fit(cancer[0], cancer[1])
    model._classes = days

    assert "labels of datetime64[D], and an answer carries numbers, booleans or text" in refusal(model)


@pytest.mark.parametrize("boosting", ["gbdt", "dart", "rf"])
def test_a_regressor_answers_as_it_does(boosting, ask):
    frame, target = load_diabetes(return_X_y=True, as_frame=True)
    sampling = {"subsample": 0.5, "subsample_freq": 1}
    model = lightgbm.LGBMRegressor(**SMALL, **sampling, boosting_type=boosting).fit(frame, target)

    assert np.array_equal(ask(package(model, sample=frame[:8]), frame)["predict"], model.predict(frame))


def test_a_ranker_answers_with_scores(cancer, ask):
    frame = cancer[0]
    model = lightgbm.LGBMRanker(**SMALL).fit(frame[:560], cancer[1][:560], group=[10] * 56)

    assert np.array_equal(ask(package(model, sample=frame[:8]), frame)["predict"], model.predict(frame))


def test_a_booster_answers_what_its_predict_answers(cancer, ask):
    rows, labels = cancer[0].to_numpy(), cancer[1]
    data = lightgbm.Dataset(rows, labels)
    booster = lightgbm.train({"objective": "binary", "num_leaves": 7, "verbose": -1}, data, 6)

    made = package(booster, name="booster", sample=rows[:8])

    assert np.array_equal(ask(made, rows)["predict"], booster.predict(rows))


def test_a_classifier_with_an_objective_of_the_users_own_answers_raw_scores(cancer, ask):
    frame = cancer[0]

    def squared(target, raw):
        return raw - target, np.ones_like(raw)

    model = lightgbm.LGBMClassifier(**SMALL, objective=squared).fit(frame, cancer[1])

    answer = ask(package(model, sample=frame[:8]), frame)["predict"]

    assert np.array_equal(answer, model.booster_.predict(frame))


def test_early_stopping_is_kept(cancer, ask):
    rows, labels = cancer[0].to_numpy(), cancer[1]
    booster = lightgbm.train(
        {"objective": "binary", "learning_rate": 0.9, "verbose": -1},
        lightgbm.Dataset(rows[:200], labels[:200]),
        80,
        valid_sets=[lightgbm.Dataset(rows[200:], labels[200:])],
        callbacks=[lightgbm.early_stopping(2, verbose=False)],
        keep_training_booster=True,
    )
    assert 0 < booster.best_iteration < booster.current_iteration()

    made = package(booster, name="booster", sample=rows[:8])

    assert np.array_equal(ask(made, rows)["predict"], booster.predict(rows))


def test_what_is_missing_is_nan(named, cancer, ask):
    frame = cancer[0].copy()
    frame.iloc[::2, 5] = np.nan

    made = package(named, sample=frame[:8], methods="predict_proba")

    assert np.array_equal(ask(made, frame)["predict_proba"], named.predict_proba(frame))


def test_the_manifest_says_what_it_takes_and_needs_no_scikit_learn(named, binary, cancer):
    manifest = package(binary, sample=cancer[0].to_numpy()[:8]).manifest
    columns = package(named, sample=cancer[0][:8]).manifest

    assert manifest.name == "lgbm-classifier"
    assert (manifest.flavor, manifest.safe, manifest.row_wise) == ("lightgbm", True, True)
    for lock in (manifest.requirements, columns.requirements):
        assert {line.partition("==")[0] for line in lock} >= {"lightgbm", "numpy", "scipy"}
        assert not {line.partition("==")[0] for line in lock} & {"scikit-learn", "pandas"}
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.signature.inputs] == [
        ("input", "FP64", (-1, 30))
    ]


def test_columns_go_by_name_in_any_order_and_names_keep_their_spaces(named, cancer, ask):
    frame = cancer[0]
    turned = frame[frame.columns[::-1]]

    made = package(named, sample=turned[:8])

    assert [spec.name for spec in made.signature.inputs] == list(frame.columns)
    expected = named.predict(frame)
    assert np.array_equal(ask(made, turned)["predict"], expected)
    assert np.array_equal(ask(made, frame.to_dict("records"))["predict"], expected)
    assert np.array_equal(ask(made, frame.to_numpy())["predict"], expected)


@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame, np.ndarray.tolist], ids=["array", "frame", "nested lists"])
def test_rows_may_come_in_any_form(binary, cancer, ask, form):
    rows = cancer[0].to_numpy()[:9]
    given = form(rows)

    made = package(binary, sample=given.rename(columns=str) if isinstance(given, pd.DataFrame) else given)

    assert np.array_equal(ask(made, rows)["predict"], (binary.booster_.predict(rows) > 0.5).astype(int))
    assert made.digest == package(binary, sample=rows).digest


def test_without_a_sample_the_model_itself_says_what_it_takes(binary, named, cancer, ask):
    rows = cancer[0].to_numpy()[:5]

    assert np.array_equal(ask(package(binary), rows)["predict"], ask(package(binary, sample=rows), rows)["predict"])
    assert package(named).signature.inputs[0].name == "mean_radius"


def test_a_file_is_the_package_that_its_booster_is(named, cancer, tmp_path):
    path = tmp_path / "cancer.txt"
    named.booster_.save_model(path)
    sample = cancer[0][:4]

    assert package(path, sample=sample).digest == package(named.booster_, name="cancer", sample=sample).digest


def test_another_text_file_and_a_broken_one_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("tree of ideas")
    (tmp_path / "broken.txt").write_text("tree\nversion=v4\nnum_class=1\n")

    assert "'notes.txt' is not a model that polyserve knows" in refusal(tmp_path / "notes.txt")
    assert f"'broken.txt' cannot be read by LightGBM {lightgbm.__version__} (" in refusal(tmp_path / "broken.txt")


def test_what_is_no_trained_model_is_refused(binary, tmp_path):
    assert "LGBMClassifier is a class: pass a trained object" in refusal(lightgbm.LGBMClassifier)
    assert "LGBMClassifier is not fitted: call fit() on it" in refusal(lightgbm.LGBMClassifier())
    assert "a dict is no LightGBM model" in refusal({}, flavor="lightgbm")
    assert "takes no further files" in refusal(binary, files=tmp_path)
    assert "no method 'score': pass methods= with some of predict, predict_proba" in refusal(binary, methods=["score"])
    assert "no method 'predict_proba': pass methods= with some of predict" in refusal(
        binary.booster_, methods=["predict_proba"]
    )


def test_columns_of_categories_are_refused_with_the_way_out():
    frame = pd.DataFrame({"city": pd.Categorical(["Rome", "Oslo"] * 20), "age": np.arange(40.0)})
    model = lightgbm.LGBMClassifier(**SMALL).fit(frame, [0, 1] * 20)

    assert "1 columns of categories, whose dtype no request carries: train it on their codes" in refusal(model)


def test_a_sample_or_a_request_that_is_not_what_the_model_takes(binary, named, cancer, ask):
    made = package(named, sample=cancer[0][:4])

    assert "input 'input': expected shape [-1, 30], got [2, 3]" in refusal(binary, sample=np.ones((2, 3)))
    assert "'mean_radius' is missing" in refusal(named, sample=cancer[0][:4].drop(columns="mean radius"))
    with pytest.raises(RequestError, match="'mean radius' is missing"):
        ask(made, cancer[0][:4].drop(columns="mean radius"))
    with pytest.raises(RequestError, match="'mean radius': expected"):
        ask(made, cancer[0][:4].assign(**{"mean radius": "wide"}))


def test_how_many_processors_it_was_trained_with_does_not_matter(cancer):
    packages = {
        package(lightgbm.LGBMClassifier(**SMALL, n_jobs=jobs).fit(*cancer), name="cancer", sample=cancer[0][:4]).digest
        for jobs in (1, 2)
    }

    assert len(packages) == 1


def test_without_lightgbm_it_is_named_with_the_way_to_get_it(binary, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.lightgbm.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install lightgbm"):
        package(binary)
