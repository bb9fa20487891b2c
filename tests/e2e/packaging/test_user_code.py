"""Models that are Python code, or refer to it: their modules travel, and prove it in a process that has nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from polyserve.errors import PackageError
from polyserve.model import ModelPackage, package
from polyserve.runtime.protocol import parse_response

SERVE = """
import sys
from pathlib import Path
from polyserve.runtime.host import Host
from polyserve.runtime.messages import Request
root, path, headers, body, out = sys.argv[1:]
host = Host(Path(root), sink=lambda line: None)
host.load()
import json
response = host.handle(Request(path=path, headers=json.loads(headers), body=Path(body).read_bytes()))
Path(out).write_text(json.dumps({"status": response.status, "headers": dict(response.headers), "body": response.body.hex()}))
"""


def difference(made: ModelPackage, tmp_path: Path) -> str | None:
    """Have a process that knows nothing of the project answer the golden request."""
    from polyserve.driver import Response

    golden = made.golden_request()
    (tmp_path / "body").write_bytes(golden.body)
    subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            SERVE,
            made.root,
            golden.path,
            json.dumps(dict(golden.headers)),
            tmp_path / "body",
            tmp_path / "out",
        ],
        check=True,
        cwd=tmp_path,
    )
    told = json.loads((tmp_path / "out").read_text())
    made.verify()
    return made.difference(Response(status=told["status"], headers=told["headers"], body=bytes.fromhex(told["body"])))


def answer(made: ModelPackage) -> dict[str, object]:
    tensors, _ = parse_response((made.root / "sample/answer.json").read_bytes(), {})
    for tensor in tensors:
        if tensor.datatype == "BYTES":
            tensor.parameters = {"content_type": "str"}
    return {tensor.name: tensor.tolist() for tensor in tensors}


def test_a_function_travels_with_the_modules_it_imports(project, tmp_path):
    project(
        {
            "pkg/__init__": "",
            "pkg/serving": "from . import scaling\n"
            "from pkg.deep.offsets import OFFSET\n"
            "def predict(rows):\n    return [scaling.twice(row) + OFFSET for row in rows]",
            "pkg/scaling": "import shared\ndef twice(row): return shared.double(row)",
            "pkg/deep/__init__": "",
            "pkg/deep/offsets": "OFFSET = 1",
            "pkg/unused": "",
            "shared": "def double(value): return 2 * value",
        }
    )

    made = package("pkg.serving:predict", name="twice", sample=[1, 2, 3])

    assert sorted(path for path in made.manifest.files if path.startswith("code/")) == [
        "code/pkg/__init__.py",
        "code/pkg/deep/__init__.py",
        "code/pkg/deep/offsets.py",
        "code/pkg/scaling.py",
        "code/pkg/serving.py",
        "code/shared.py",
    ]
    assert made.manifest.loader == {
        "format": "function",
        "module": "pkg.serving",
        "attribute": "predict",
        "model_dir": None,
    }
    assert made.manifest.requirements == ()
    assert made.manifest.row_wise
    assert answer(made) == {"output": [3, 5, 7]}
    assert difference(made, tmp_path) is None


PREDICTOR = """
    import json
    import numpy as np

    class Scaled:
        def load(self, model_dir):
            self.factor = json.loads((model_dir / "factor.json").read_text())

        def preprocess(self, inputs):
            if inputs.shape[1] != 2:
                raise ValueError(f"expected 2 columns, got {inputs.shape[1]}")
            return inputs * self.factor

        def predict(self, inputs):
            return inputs.sum(axis=1)

        def postprocess(self, outputs):
            return {"score": outputs, "size": ["big" if value > 10 else "small" for value in outputs]}
"""


def test_a_predictor_class_loads_its_files_and_runs_every_step(project, tmp_path):
    project({"scaled": PREDICTOR})
    (tmp_path / "files").mkdir()
    (tmp_path / "files/factor.json").write_text("3")

    made = package("scaled:Scaled", sample=np.array([[1.0, 2.0], [3.0, 4.0]]), files=tmp_path / "files")

    assert made.name == "scaled"
    assert made.manifest.requirements == (f"numpy=={np.__version__}",)
    assert made.signature.output_kind == "mapping"
    assert answer(made) == {"score": [9.0, 21.0], "size": ["small", "big"]}
    assert difference(made, tmp_path) is None


def test_a_sample_that_preprocess_refuses_is_refused_in_its_words(project, tmp_path):
    project({"scaled": PREDICTOR})
    (tmp_path / "factor.json").write_text("3")

    with pytest.raises(PackageError, match="does not take the sample: expected 2 columns, got 3"):
        package("scaled:Scaled", sample=np.ones((2, 3)), files=tmp_path / "factor.json")


def test_a_predictor_object_travels_as_it_is(project, tmp_path):
    project(
        {
            "adding": "class Adder:\n"
            "    def __init__(self, n): self.n = n\n"
            "    def predict(self, rows): return [row + self.n for row in rows]"
        }
    )
    import adding

    made = package(adding.Adder(5), sample=[1, 2])

    assert set(made.manifest.files) >= {"model/predictor.pickle", "code/adding.py"}
    assert answer(made) == {"output": [6, 7]}
    assert difference(made, tmp_path) is None


def test_a_predictor_gets_what_the_sample_was(project, tmp_path):
    project(
        {
            "frames": "def predict(frame):\n    return {'kind': type(frame).__name__, 'total': (frame['a'] + frame['b']).to_numpy()}"
        }
    )

    made = package("frames:predict", name="frames", sample=pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}))

    assert answer(made) == {"kind": "DataFrame", "total": [1.5, 3.5]}
    assert any(line.startswith("pandas==") for line in made.manifest.requirements)
    assert not made.manifest.row_wise
    assert difference(made, tmp_path) is None


def test_arrays_in_a_dict_need_numpy_even_where_the_model_does_not_import_it(project, tmp_path):
    project({"sums": "def predict(given): return [sum(row) for row in given['rows'].tolist()]"})

    made = package("sums:predict", name="sums", sample={"rows": np.ones((2, 3)), "unit": "cm"})

    assert made.manifest.requirements == (f"numpy=={np.__version__}",)
    assert difference(made, tmp_path) is None


def test_a_module_that_is_missed_while_it_answers_is_named(project):
    source = "def predict(rows):\n    import importlib\n    return importlib.import_module('late' + 'ly').VALUE"
    project({"lazy": source, "lately": "VALUE = [1]"})

    with pytest.raises(PackageError, match="module 'lately' does not travel with the model"):
        package("lazy:predict", sample=[1])


def test_a_pipeline_takes_the_users_function_along(project, tmp_path, iris):
    project(
        {
            "cleaning": "import helper_of_cleaning\ndef clean(rows): return helper_of_cleaning.clip(rows)",
            "helper_of_cleaning": "def clip(rows): return rows.clip(0, 5)",
        }
    )
    import cleaning

    model = make_pipeline(FunctionTransformer(cleaning.clean), LinearRegression()).fit(*iris)
    path = tmp_path / "clean.joblib"
    joblib.dump(model, path)

    made = package(path, sample=iris[0][:3])

    assert {"code/cleaning.py", "code/helper_of_cleaning.py"} <= set(made.manifest.files)
    assert made.digest == package(model, name="clean", sample=iris[0][:3]).digest
    assert difference(made, tmp_path) is None


def test_a_module_that_no_import_shows_is_missed_in_the_rehearsal_and_added_by_code(project, tmp_path):
    root = project(
        {
            "dynamic": "import importlib\nhidden = importlib.import_module('hid' + 'den')\n"
            "def predict(rows): return [hidden.PLUS + row for row in rows]",
            "hidden": "PLUS = 7",
        }
    )

    with pytest.raises(PackageError, match=r"module 'hidden' does not travel with the model.*code=\[\.\.\.\]"):
        package("dynamic:predict", sample=[1])
    made = package("dynamic:predict", sample=[1], code=[root / "hidden.py"])

    assert answer(made) == {"output": [8]}
    assert difference(made, tmp_path) is None


def test_a_directory_of_code_travels_with_its_data_and_without_byte_code(project, tmp_path):
    root = project(
        {
            "reader": "import importlib.resources\n"
            "def predict(rows): return [importlib.resources.files('vocabulary').joinpath('words.txt').read_text()] * len(rows)",
            "vocabulary/__init__": "",
        }
    )
    (root / "vocabulary/words.txt").write_text("words")
    (root / "vocabulary/__pycache__").mkdir()
    (root / "vocabulary/__pycache__/__init__.cpython-311.pyc").write_bytes(b"")

    made = package("reader:predict", sample=[1], code=[root / "vocabulary"])

    assert {path for path in made.manifest.files if "vocabulary" in path} == {
        "code/vocabulary/__init__.py",
        "code/vocabulary/words.txt",
    }
    assert answer(made) == {"output": ["words"]}


def test_imports_for_type_checkers_do_not_travel(project):
    project(
        {
            "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import only_types, pandas\ndef predict(rows): return rows",
            "only_types": "",
        }
    )

    made = package("typed:predict", sample=[1])

    assert "code/only_types.py" not in made.manifest.files
    assert made.manifest.requirements == ()


def test_what_a_model_returns_must_be_sendable(project):
    project({"odd": "def predict(rows): return object()"})

    with pytest.raises(PackageError, match="the model's answer to the sample cannot be sent"):
        package("odd:predict", sample=[1])


def test_a_model_that_fails_on_the_sample_is_told_with_its_error(project):
    project({"failing": "def predict(rows): return rows[99]"})

    with pytest.raises(PackageError, match="does not take the sample: IndexError: list index out of range"):
        package("failing:predict", sample=[1])


def test_a_model_that_cannot_be_loaded_is_told_with_its_error(project):
    project(
        {
            "unloadable": "class Model:\n"
            "    def load(self, model_dir): raise RuntimeError('no licence')\n"
            "    def predict(self, rows): return rows"
        }
    )

    with pytest.raises(PackageError, match="cannot be loaded again once it is packaged: RuntimeError: no licence"):
        package("unloadable:Model", sample=[1])


def test_a_model_that_kills_its_process_is_told_so(project):
    project({"killing": "import os\ndef predict(rows): os._exit(3)"})

    with pytest.raises(PackageError, match="its process ended with status 3"):
        package("killing:predict", sample=[1])


def test_a_model_that_answers_differently_each_time_is_refused(project):
    project({"dice": "import random\ndef predict(rows): return [random.random() for _ in rows]"})

    with pytest.raises(PackageError, match="answers the same sample differently each time"):
        package("dice:predict", sample=[1])


@pytest.mark.parametrize(
    ("source", "row_wise"),
    [
        ("def predict(rows): return [2 * row for row in rows]", True),
        ("def predict(rows): return [row - sum(rows) for row in rows]", False),
        ("def predict(rows): return [len(rows)]", False),
        ("def predict(rows): return rows + rows", False),
        ("def predict(rows):\n    if len(rows) > 8: raise RuntimeError('too many')\n    return rows", False),
        ("calls = [0]\ndef predict(rows):\n    calls[0] += 1\n    return [min(calls[0], 4) // 4 for _ in rows]", False),
    ],
    ids=["each row alone", "rows that depend on each other", "one answer", "more answers", "a limit", "a counter"],
)
def test_row_wise_is_proven_on_the_sample(project, source, row_wise):
    project({"rows": source})

    assert package("rows:predict", sample=[1, 2, 3]).manifest.row_wise is row_wise


def run(script: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)


def test_what_a_script_defines_travels_under_the_scripts_name(tmp_path):
    script = tmp_path / "train_it.py"
    script.write_text(
        dedent(
            """
            from sklearn.datasets import load_iris
            from sklearn.linear_model import LinearRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import FunctionTransformer
            import polyserve

            def clean(rows):
                return rows.clip(0, 5)

            class Adder:
                def __init__(self, n): self.n = n
                def predict(self, rows): return [row + self.n for row in rows]

            def triple(rows):
                return [3 * row for row in rows]

            if __name__ == "__main__":
                X, y = load_iris(return_X_y=True)
                for model, sample in [
                    (make_pipeline(FunctionTransformer(clean), LinearRegression()).fit(X, y), X[:2]),
                    (Adder(2), [1, 2]),
                    (triple, [1, 2]),
                ]:
                    made = polyserve.package(model, sample=sample)
                    assert "code/train_it.py" in made.manifest.files, made.manifest.files
                    assert made.difference is not None
                    print(made.digest)
            """
        )
    )

    first, second = run(script, tmp_path), run(script, tmp_path)

    assert first.returncode == 0, first.stderr
    assert len(set(first.stdout.split())) == 3
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    "source",
    [
        "import polyserve\ndef triple(rows): return rows\npolyserve.package(triple, sample=[1])\n",
        "from polyserve.model import package\ndef triple(rows): return rows\npackage(triple, sample=[1])\n",
    ],
    ids=["call", "import"],
)
def test_a_script_that_packages_at_its_top_level_is_told_where_to_put_the_call(tmp_path, source):
    script = tmp_path / "unguarded.py"
    script.write_text(source)

    done = run(script, tmp_path)

    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_the_working_directory_is_searched_for_a_reference(project, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/only_here.py").write_text("def predict(rows): return rows")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    assert package("only_here:predict", sample=[1]).manifest.loader["module"] == "only_here"


def test_a_function_of_a_module_that_no_search_finds_travels_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "aside.py").write_text("def predict(rows): return [2 * row for row in rows]")
    spec = importlib.util.spec_from_file_location("nobody_finds", tmp_path / "aside.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "nobody_finds", module)
    spec.loader.exec_module(module)

    made = package(module.predict, name="aside", sample=[1, 2])

    assert "code/nobody_finds.py" in made.manifest.files
    assert difference(made, tmp_path) is None
