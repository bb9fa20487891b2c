"""A PyTorch model becomes a package that answers as the model does, whatever form it has, and brings no more code than it must."""

import json
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from polyserve.errors import MissingDependencyError, PackageError
from polyserve.model import ModelPackage, package
from polyserve.model.flavors import caution
from polyserve.runtime import environment
from polyserve.runtime.host import Host
from polyserve.runtime.messages import ErrorCode, Request, RequestError


@pytest.fixture(scope="session")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture(scope="session")
def mlp(digits) -> nn.Sequential:
    """Train a perceptron on the digits, and leave it in training mode, in which dropout would show."""
    torch.manual_seed(0)
    rows, labels = torch.tensor(digits[0], dtype=torch.float32), torch.tensor(digits[1])
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="session")
def logits(mlp, digits) -> np.ndarray:
    mlp.eval()
    with torch.no_grad():
        answer = mlp(torch.tensor(digits[0], dtype=torch.float32)).numpy()
    mlp.train()
    assert (answer.argmax(1) == digits[1]).mean() > 0.95
    return answer


def scripted(model) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model.eval())


def exported(model, *example, **dimensions) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(model.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example) or None)


def refusal(model, **options) -> str:
    with pytest.raises(PackageError) as caught:
        package(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ask_raw(made: ModelPackage, datatype: str, shape: list[int], data: list[object]) -> tuple[int, str]:
    """Send what no client of ours would, and return status and error."""
    host = Host(made.root, sink=lambda line: None)
    host.load()
    asked = {"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "data": data}]}
    response = host.handle(Request(path=f"/v2/models/{made.name}/infer", headers={}, body=json.dumps(asked).encode()))
    return response.status, json.loads(response.body).get("error", "")


# --- every form of one model ------------------------------------------------------------------------------------------------------------


def forms(mlp: nn.Module, tmp_path: Path) -> dict[str, object]:
    program = exported(mlp, torch.zeros(2, 64))
    torch.export.save(program, tmp_path / "saved.pt2")
    script = scripted(mlp)
    script.save(tmp_path / "saved.ts")
    script.save(tmp_path / "script.pt")
    torch.save(mlp, tmp_path / "whole.pth")
    return {
        "a module": mlp.train(),
        "a module that was saved whole": tmp_path / "whole.pth",
        "a program": program,
        "a file of a program": tmp_path / "saved.pt2",
        "a script": script,
        "a file of a script": tmp_path / "saved.ts",
        "a file of a script by another suffix": str(tmp_path / "script.pt"),
    }


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_every_form_answers_as_the_model_does(mlp, digits, logits, tmp_path, ask):
    for form, model in forms(mlp, tmp_path).items():
        made = package(model, name="digits", sample=digits[0][:8])

        answer = ask(made, digits[0])

        assert made.manifest.flavor == "torch", form
        np.testing.assert_allclose(answer["output"], logits, rtol=1e-5, atol=1e-5, err_msg=form)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_runs_no_code_when_it_is_loaded_is_safe(mlp, digits, tmp_path):
    safe = {
        form: package(model, name="digits", sample=digits[0][:2]).manifest.safe
        for form, model in forms(mlp, tmp_path).items()
    }

    assert {form for form, is_safe in safe.items() if not is_safe} == {"a module", "a module that was saved whole"}


def test_whoever_deploys_a_module_is_told_of_the_form_that_runs_no_code(mlp, digits):
    module = package(mlp, name="digits", sample=digits[0][:2])
    program = package(exported(mlp, torch.zeros(2, 64)), name="digits", sample=digits[0][:2])

    told = caution(module.manifest)

    assert told is not None
    assert told.startswith("loading the model runs its code: ")
    assert "package what torch.export.export makes of it" in told
    assert caution(program.manifest) is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_file_is_the_package_that_the_object_is(mlp, digits, tmp_path):
    made = {form: package(model, name="digits", sample=digits[0][:2]) for form, model in forms(mlp, tmp_path).items()}

    assert made["a module"] == made["a module that was saved whole"]
    assert made["a program"] == made["a file of a program"]
    assert made["a script"] == made["a file of a script"] == made["a file of a script by another suffix"]


def test_a_package_says_nothing_of_the_machine_it_was_made_on(mlp, digits):
    for model in (exported(mlp, torch.zeros(2, 64)), scripted(mlp), mlp):
        made = package(model, name="digits", sample=digits[0][:2])
        for path in made.manifest.files:
            content = (made.root / path).read_bytes()
            if zipfile.is_zipfile(made.root / path):
                with zipfile.ZipFile(made.root / path) as archive:
                    content = b"".join(map(archive.read, archive.namelist()))
            assert Path(torch.__file__).parent.as_posix().encode() not in content, path


def test_the_model_in_memory_is_left_as_it_was(mlp, digits):
    mlp.train()
    mlp[1].eval()
    threads = torch.get_num_threads()

    package(mlp, name="digits", sample=digits[0][:2])

    assert [part.training for part in mlp.modules()] == [True, True, False, True, True, True]
    assert all(parameter.requires_grad for parameter in mlp.parameters())
    assert torch.get_num_threads() == threads
    mlp.train()


def test_weights_are_a_file_that_safetensors_reads(mlp, digits):
    made = package(mlp, name="digits", sample=digits[0][:2])

    tensors = load_file(made.root / "model/weights.safetensors")

    assert set(tensors) == set(mlp.state_dict())
    assert all(torch.equal(tensor, mlp.state_dict()[name]) for name, tensor in tensors.items())


def test_a_tensor_in_two_places_is_saved_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200))
    model[2].weight = model[0].weight

    made = package(model, name="tied", sample=np.ones((2, 200), "f4"))

    assert set(load_file(made.root / "model/weights.safetensors")) == {"0.weight", "0.bias", "2.bias"}


# --- inputs and outputs -----------------------------------------------------------------------------------------------------------------


def test_float64_rows_are_rounded_to_a_models_float32_and_refused_where_they_overflow(mlp, digits, logits, ask):
    made = package(mlp, name="digits", sample=digits[0][:2])

    assert [spec.datatype for spec in made.signature.inputs] == ["FP32"]
    np.testing.assert_allclose(ask(made, digits[0][:5])["output"], logits[:5], rtol=1e-5, atol=1e-5)
    with pytest.raises(RequestError, match=r"expected FP32, got FP64: 1e\+300 at index 3 would change"):
        ask(made, np.where(np.arange(64) == 3, 1e300, 0.0)[None])


def test_a_model_in_float64_keeps_its_precision(ask):
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    rows = np.array([[1.0, 1e-12, 3.0], [0.1, 0.2, 0.3]])

    answer = ask(package(model, name="line", sample=rows), rows)["output"]

    assert answer.dtype == np.float64
    assert np.array_equal(answer, model(torch.tensor(rows)).detach().numpy())


def test_bfloat16_is_taken_and_given_as_floats_that_hold_it(ask):
    torch.manual_seed(0)
    model = nn.Linear(4, 2).bfloat16()
    rows = np.array([[0.5, 1.0, -2.0, 3.0]])

    made = package(model, name="brain", sample=rows)

    assert made.signature.inputs[0].datatype == "BF16"
    expected = model(torch.tensor(rows, dtype=torch.bfloat16)).float().detach().numpy()
    assert np.array_equal(ask(made, rows)["output"], expected)


def test_a_program_names_its_inputs_and_leaves_open_what_was_left_open(digits, mlp):
    made = package(exported(mlp, torch.zeros(2, 64)), name="digits")

    [given] = made.signature.inputs
    assert (given.name, given.datatype, given.shape) == ("input", "FP32", (-1, 64))
    assert [(spec.datatype, spec.shape) for spec in made.signature.outputs] == [("FP32", (-1, 10))]


def test_a_tensor_is_a_sample_too(mlp, digits, ask, logits):
    made = package(mlp, name="digits", sample=torch.tensor(digits[0][:4], dtype=torch.float32))

    np.testing.assert_allclose(ask(made, digits[0][:3])["output"], logits[:3], rtol=1e-5, atol=1e-5)


def test_numbers_of_words_stay_integers_and_an_unknown_one_is_the_callers_fault():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    made = package(model, name="words", sample=np.array([[1, 2, 3], [4, 5, 6]]))

    assert made.signature.inputs[0].datatype == "INT64"
    assert ask_raw(made, "INT64", [1, 3], [1, 2, 3])[0] == 200
    assert ask_raw(made, "INT64", [1, 3], [1, 2, 99]) == (
        400,
        "the model refuses the input: index out of range in self",
    )


def test_a_shape_that_only_the_model_knows_to_be_wrong_is_the_callers_fault():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 1, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    made = package(scripted(model), name="waves", sample=np.ones((2, 1, 8), "f4"))

    status, error = ask_raw(made, "FP32", [1, 1, 2], [1.0, 2.0])

    # The sample settles the shape, so the runtime refuses before the model does.
    assert (status, error) == (400, "input 'input': expected shape [-1, 1, 8], got [1, 1, 2]")


# --- what is refused --------------------------------------------------------------------------------------------------------------------


def test_what_is_no_model_is_refused_with_the_way_out(mlp, digits, tmp_path):
    rows = digits[0][:2]
    torch.save(mlp.state_dict(), tmp_path / "state.pt")
    save_file(mlp.state_dict(), tmp_path / "state.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "broken.pt2").write_bytes(b"PK no more")

    told = {
        name: refusal(tmp_path / name, sample=rows)
        for name in ("state.pt", "state.safetensors", "list.pt", "broken.pt2")
    }

    assert "'state.pt' holds weights without the module" in told["state.pt"]
    assert "files='state.safetensors'" in told["state.safetensors"]
    assert "'list.pt' holds a list, not a PyTorch model" in told["list.pt"]
    assert f"'broken.pt2' cannot be read by PyTorch {torch.__version__}" in told["broken.pt2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"methods": ["predict"]}, "a PyTorch model has forward() alone"),
        ({"files": "weights.pt"}, "load them into Sequential with load_state_dict"),
        ({}, "Sequential does not say what its input is: pass a sample"),
        ({"sample": pd.DataFrame({"a": [1.0], "b": [2.0]})}, "a PyTorch model takes arrays, and no table"),
        ({"sample": ["text"]}, "takes numbers, and the sample is text"),
        (
            {"sample": [[1.0, 2.0]]},
            "the model does not take the sample: the model refuses the input: mat1 and mat2 shapes",
        ),
    ],
    ids=["methods", "files", "no sample", "frame", "text", "shape"],
)
def test_what_does_not_fit_a_module_is_refused(mlp, options, expected):
    assert expected in refusal(mlp, **options)


def test_a_lambda_inside_a_module_is_refused(mlp):
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = lambda value: 2 * value

    told = refusal(model, sample=[[1.0, 2.0]])

    assert "cannot be pickled, so it cannot travel" in told
    assert "torch.export.export" in told


def test_a_module_is_not_packaged_where_pytorch_is_missing(mlp, monkeypatch):
    monkeypatch.setattr("polyserve.model.flavors.torch.find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match="pip install torch"):
        package(mlp, sample=np.ones((2, 64)))


def test_a_program_with_a_pickle_or_code_in_its_sizes_is_marked_as_unsafe(mlp, tmp_path):
    program = exported(mlp, torch.zeros(2, 64))
    torch.export.save(program, tmp_path / "plain.pt2")
    for name, old, new in [
        ("pickle", b'"use_pickle": false', b'"use_pickle": true'),
        ("size", b"Symbol('s31'", b"__import__('os').getpid() or Symbol('s31'"),
        ("operator", b"torch.ops.aten.relu.default", b"torch.serialization.os.system"),
    ]:
        from polyserve.model import torcharchive

        with zipfile.ZipFile(tmp_path / "plain.pt2") as source, zipfile.ZipFile(tmp_path / name, "w") as target:
            contents = {entry: source.read(entry) for entry in source.namelist()}
            symbol = next(part.split(b"'")[0] for part in contents["plain/models/model.json"].split(b"Symbol('")[1:])
            changed = {
                entry: content.replace(old.replace(b"s31", symbol), new.replace(b"s31", symbol))
                for entry, content in contents.items()
            }
            assert changed != contents
            for entry, content in changed.items():
                target.writestr(entry, content)

        assert not torcharchive.runs_code(torcharchive.canonical((tmp_path / "plain.pt2").read_bytes()))
        assert torcharchive.runs_code(torcharchive.canonical((tmp_path / name).read_bytes()))


# --- versions ---------------------------------------------------------------------------------------------------------------------------


def test_a_build_for_a_processor_is_locked_as_the_release_it_is_of(mlp, digits):
    release = torch.__version__.partition("+")[0]

    made = package(mlp, name="digits", sample=digits[0][:2])

    assert f"torch=={release}" in made.manifest.requirements
    assert list(environment.mismatches(f"3.{sys.version_info.minor}", made.manifest.requirements)) == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.13.0", "2.13.0"),
        ("2.13.0+cpu", "2.13.0"),
        ("2.13.0+cu130", "2.13.0"),
        ("2.9.0+rocm6.4", "2.9.0"),
        ("2.7.0+cpu.cxx11.abi", "2.7.0"),
        ("1.0+git.abc123", "1.0+git.abc123"),
        ("1.0+cpupatched", "1.0+cpupatched"),
    ],
)
def test_only_labels_of_hardware_are_left_out_of_a_version(version, expected):
    assert environment.without_build(version) == expected


def test_an_error_that_is_not_about_the_input_stays_the_models(mlp, digits, monkeypatch):
    made = package(mlp, name="digits", sample=digits[0][:2])
    host = Host(made.root, sink=lambda line: None)
    host.load()

    def fails(*arguments, **named):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(nn.Linear, "forward", fails)
    response = host.handle(made.golden_request())

    assert response.status == 500
    assert json.loads(response.body)["code"] == ErrorCode.INTERNAL
    assert b"disk" not in response.body
