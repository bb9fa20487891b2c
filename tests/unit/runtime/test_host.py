from __future__ import annotations

import gzip
import json
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyserve.runtime.host import Host, LoadError
from polyserve.runtime.messages import Request
from polyserve.runtime.protocol import format_request, parse_response
from polyserve.runtime.tensors import Tensor

ROW = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}
INFER = "/v2/models/tiny/infer"
MATRIX = [("input", "FP64", (-1, 4))]
MATRIX_OUT = [("output", "FP64", (-1, 4))]
LOG_KEYS = ["event", "at", "request_id", "route", "status", "code", "ms", "queue_ms", "predict_ms", "rows", "batch", "cold",
            "revision", "digest", "bytes_in", "bytes_out", "error"]  # fmt: skip


def infer(*rows: list[float], **more: Any) -> Request:
    tensor = ROW | {"shape": [len(rows), 4], "data": [x for row in rows for x in row]}
    return Request(path=INFER, body=json.dumps({"inputs": [tensor]} | more).encode())


def body_of(response: Any) -> Any:
    return json.loads(response.body)


def steady(response: Any) -> tuple[int, dict[str, str], bytes]:
    """Return what of an answer must not depend on the way it was made."""
    headers = {key: value for key, value in response.headers.items() if key not in {"server-timing", "x-request-id"}}
    return response.status, headers, response.body


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "polyserve"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny", {"name": "tiny", "versions": ["3"], "platform": "python_callable"}),
        ("/v2/models/tiny/versions/3", {"inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
        ("/v2/models/tiny/versions/3/ready", {"name": "tiny", "ready": True}),
        ("/v2/models/t%69ny/", {"name": "tiny"}),
    ],
)
def test_what_there_is_to_read(doubling: Any, path: str, expected: dict[str, Any]) -> None:
    response = doubling.host.handle(Request(method="GET", path=path))

    assert response.status == 200
    assert expected.items() <= body_of(response).items()


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/3/infer"])
def test_a_model_answers_on_its_route_and_its_versions(doubling: Any, path: str) -> None:
    response = doubling.host.handle(Request(path=path, body=json.dumps({"id": "a", "inputs": [ROW]}).encode()))

    assert response.headers["content-type"] == "application/json"
    assert body_of(response) == {
        "model_name": "tiny",
        "model_version": "3",
        "id": "a",
        "outputs": [{"name": "output", "datatype": "FP64", "shape": [1, 4], "data": [2.0, 4.0, 6.0, 8.0]}],
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "expected"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND", "there is no route '/nowhere'; try /v2/models/tiny"),
        ("GET", "/", 404, "NOT_FOUND", "there is no route '/'"),
        ("POST", "/v2/models/other/infer", 404, "NOT_FOUND", "there is no model 'other' here; this is 'tiny'"),
        (
            "POST",
            "/v2/models/tiny/versions/9/infer",
            404,
            "NOT_FOUND",
            "no version '9' of model 'tiny' here; this is '3'",
        ),
        ("GET", "/v2/models/tiny/versions", 404, "NOT_FOUND", "there is no version ''"),
        ("GET", "/v2/models/tiny/config", 404, "NOT_FOUND", "there is no route"),
        ("GET", INFER, 405, "UNSUPPORTED", "answers POST, got 'GET'"),
        ("DELETE", "/v2/models/tiny", 405, "UNSUPPORTED", "answers GET, got 'DELETE'"),
        ("POST", "/v2/health/ready", 405, "UNSUPPORTED", "answers GET, got 'POST'"),
    ],
)
def test_what_is_not_there_says_so_in_the_one_error_body(
    doubling: Any, method: str, path: str, status: int, code: str, expected: str
) -> None:
    response = doubling.host.handle(Request(method=method, path=path, request_id="r1"))

    assert response.status == status
    assert set(body_of(response)) == {"error", "code", "request_id"}
    assert body_of(response)["code"] == code
    assert body_of(response)["request_id"] == "r1"
    assert expected in body_of(response)["error"]
    assert ("allow" in response.headers) is (status == 405)


def test_every_answer_says_who_gave_it(doubling: Any) -> None:
    for request in (infer([1, 2, 3, 4]), Request(path="/nowhere"), Request(method="GET", path="/v2")):
        headers = doubling.host.handle(request).headers

        assert headers["x-polyserve-revision"] == "3"
        assert headers["x-polyserve-digest"] == doubling.host.digest == doubling.host.manifest.digest
        assert len(headers["x-request-id"]) == 32
        assert [part.split(";")[0] for part in headers["server-timing"].split(", ")] == ["queue", "predict", "total"]


@pytest.mark.parametrize(
    ("request_id", "headers", "kept"),
    [
        ("abc", {"x-request-id": "other"}, "abc"),
        ("", {"x-request-id": "from header"}, "from header"),
        ("", {"x-request-id": 'a"b'}, ""),
        ("", {"x-request-id": "a\r\nset-cookie: x"}, ""),
        ("", {"x-request-id": "é"}, ""),
        ("", {"x-request-id": "a" * 129}, ""),
    ],
)
def test_request_ids_are_kept_where_they_are_safe(doubling: Any, request_id: str, headers: Any, kept: str) -> None:
    response = doubling.host.handle(Request(method="GET", path="/v2", request_id=request_id, headers=headers))

    found = response.headers["x-request-id"]
    assert found == kept if kept else len(found) == 32
    assert doubling.log[-1]["request_id"] == found


# --- inference -------------------------------------------------------------------------------------------------------


def test_binary_in_and_binary_out(doubling: Any) -> None:
    body, headers = format_request([Tensor.from_numpy("input", np.ones((2, 4)))], binary=True)

    response = doubling.host.handle(Request(path=INFER, headers=headers, body=memoryview(body)))
    outputs, _ = parse_response(response.body, response.headers)

    assert response.headers["content-type"] == "application/octet-stream"
    assert outputs[0].tolist() == [[2.0] * 4] * 2


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"inputs": [ROW | {"name": "x"}]}, "expected inputs ['input'], got ['x']: 'input' is missing, 'x' is unknown"),
        ({"inputs": [ROW | {"datatype": "FP32"}]}, "input 'input': expected datatype FP64, got FP32"),
        ({"inputs": [ROW | {"shape": [4]}]}, "input 'input': expected shape [-1, 4], got [4]"),
        ({"inputs": [ROW | {"data": [1]}]}, "tensor 'input': expected 4 elements for shape [1, 4], got 1"),
        ({"inputs": [ROW, ROW]}, "input 'input' is there more than once"),
        ({"inputs": [ROW], "outputs": [{"name": "score"}]}, "there is no output 'score'; expected output"),
        ([], "expected a JSON object as the request, got []"),
    ],
)
def test_what_is_not_the_models_input_is_refused(doubling: Any, payload: Any, expected: str) -> None:
    response = doubling.infer(payload)

    assert response.status == 400
    assert body_of(response)["error"] == expected
    assert doubling.log[-1]["error"] == expected


def test_no_rows_are_answered_with_no_rows_without_the_model(serve: Any) -> None:
    served = serve("def predict(x):\n    raise RuntimeError('never asked')\n", MATRIX, MATRIX_OUT)

    response = served.infer({"inputs": [ROW | {"shape": [0, 4], "data": []}]})
    rows = served.host.handle(Request(path="/invocations", body=b"[]"))

    assert body_of(response)["outputs"] == [{"name": "output", "datatype": "FP64", "shape": [0, 4], "data": []}]
    assert rows.body == b"[]"


def test_a_model_that_is_not_row_wise_is_asked_about_no_rows(serve: Any) -> None:
    served = serve("def predict(x):\n    return x + 1\n", MATRIX, MATRIX_OUT, row_wise=False)

    assert body_of(served.infer({"inputs": [ROW | {"shape": [0, 4], "data": []}]}))["outputs"][0]["shape"] == [0, 4]


TWO = "def predict(x):\n    return {'a': x * 2, 'b': x.sum(axis=1)}\n"
TWO_OUT = [("a", "FP64", (-1, 4)), ("b", "FP64", (-1,))]


@pytest.mark.parametrize("wanted", [["a"], ["b"], ["b", "a"], ["a", "b"]])
def test_outputs_come_as_they_are_asked_for(serve: Any, wanted: list[str]) -> None:
    served = serve(TWO, MATRIX, TWO_OUT, output_kind="mapping")
    payload = {"inputs": [ROW], "outputs": [{"name": name} for name in wanted]}

    response = served.infer(payload)

    assert [output["name"] for output in body_of(response)["outputs"]] == wanted


@pytest.mark.parametrize("body", [b"[[1,2,3,4],[5,6,7,8]]", b'{"rows":[[1,2,3,4],[5,6,7,8]]}'], ids=["bare", "named"])
def test_plain_rows_are_answered_plainly(doubling: Any, body: bytes) -> None:
    response = doubling.host.handle(Request(path="/invocations", body=body))

    assert response.body == b"[[2.0,4.0,6.0,8.0],[10.0,12.0,14.0,16.0]]"
    assert doubling.log[-1]["route"] == "invocations"


def test_plain_rows_of_several_outputs_are_named(serve: Any) -> None:
    served = serve(TWO, MATRIX, TWO_OUT, output_kind="mapping")

    response = served.host.handle(Request(path="/invocations", body=b"[[1,2,3,4]]"))

    assert body_of(response) == {"a": [[2.0, 4.0, 6.0, 8.0]], "b": [10.0]}


FRAME = [("age", "INT64", (-1,)), ("name", "BYTES", (-1,), {"content_type": "str"})]
GREETING = [("output", "BYTES", (-1,), {"content_type": "str"})]
GREET = "def predict(frame):\n    return [f'{n} {a}' for n, a in zip(frame['name'], frame['age'])]\n"


@pytest.mark.parametrize(
    "body", ['[{"age":3,"name":"é"}]', '[[3,"é"]]', '{"rows":[{"name":"é","age":3}]}', '{"age":[3],"name":["é"]}']
)
def test_rows_of_a_frame_are_dicts_or_lists(serve: Any, body: str) -> None:
    served = serve(GREET, FRAME, GREETING, input_kind="frame", output_kind="list")

    response = served.host.handle(Request(path="/invocations", body=body.encode()))

    assert response.body == '["é 3"]'.encode()


@pytest.mark.parametrize(
    "body", [b"3", b'"x"', b"null", b'{"rows":3}', b"[[1,2]]", b"[[1,2,3,true]]", b'{"x":1}', b"["]
)
def test_plain_requests_that_are_no_rows_are_refused(doubling: Any, body: bytes) -> None:
    response = doubling.host.handle(Request(path="/invocations", body=body))

    assert (response.status, body_of(response)["code"]) == (400, "INVALID_ARGUMENT")


def test_columns_of_different_lengths_are_refused(serve: Any) -> None:
    served = serve(GREET, FRAME, GREETING, input_kind="frame", output_kind="list")
    age = {"name": "age", "shape": [2], "datatype": "INT64", "data": [1, 2]}
    name = {"name": "name", "shape": [1], "datatype": "BYTES", "data": ["x"]}

    response = served.infer({"inputs": [name, age]})

    assert (
        body_of(response)["error"]
        == "expected inputs of the same number of rows, got others: 'age' has 2, 'name' has 1"
    )


# --- limits and coding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity"])
def test_bodies_may_be_compressed(doubling: Any, coding: str) -> None:
    encode = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding]

    response = doubling.host.handle(
        Request(path="/invocations", headers={"content-encoding": coding}, body=encode(b"[[1,2,3,4]]"))
    )

    assert response.body == b"[[2.0,4.0,6.0,8.0]]"


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [("br", b"x", 415), ("gzip", b"not gzip", 400), ("gzip", gzip.compress(b"[[1,2,3,4]]")[:-6], 400)],
    ids=["unknown", "broken", "cut short"],
)
def test_bodies_that_cannot_be_unpacked_are_refused(doubling: Any, coding: str, body: bytes, status: int) -> None:
    response = doubling.host.handle(Request(path="/invocations", headers={"content-encoding": coding}, body=body))

    assert (response.status, body_of(response)["code"]) == (status, "INVALID_ARGUMENT")


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_bodies_over_the_limit_are_refused_before_they_are_read(serve: Any, coding: str) -> None:
    served = serve("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT, request_bytes=1000)
    body = b" " * 100_000
    sent = gzip.compress(body) if coding == "gzip" else body

    response = served.host.handle(Request(path="/invocations", headers={"content-encoding": coding}, body=sent))

    assert (response.status, body_of(response)["code"]) == (413, "INVALID_ARGUMENT")
    assert "and this deployment takes 1000" in body_of(response)["error"]


# --- failures of the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", ["KeyError('secret')", "SystemExit(3)", "RecursionError('secret')", "ValueError('secret')"]
)
def test_what_a_model_raises_stays_in_the_log(serve: Any, failure: str) -> None:
    served = serve(f"def predict(x):\n    raise {failure}\n", MATRIX, MATRIX_OUT)

    response = served.host.handle(infer([1, 2, 3, 4]))

    assert response.status == 500
    assert body_of(response)["code"] == "INTERNAL"
    assert failure.partition("(")[0] in body_of(response)["error"]
    assert body_of(response)["request_id"] in body_of(response)["error"]
    assert b"secret" not in response.body
    trace = served.log[-1]
    assert (trace["event"], trace["request_id"]) == ("traceback", response.headers["x-request-id"])
    assert failure.partition("(")[0] in trace["traceback"]


PREDICTOR = """
class Predictor:
    def preprocess(self, x):
        if (x < 0).any():
            raise ValueError("ages are not negative")
        return x
    def predict(self, x):
        return x * 2
"""


def test_a_predictor_refuses_input_by_a_value_error(serve: Any, package: Any) -> None:
    served = serve(PREDICTOR + "predict = Predictor()\n", MATRIX, MATRIX_OUT)

    response = served.host.handle(infer([-1, 2, 3, 4]))

    assert (response.status, body_of(response)["error"]) == (400, "ages are not negative")


def test_an_answer_of_another_shape_is_the_models_failure(serve: Any) -> None:
    served = serve("def predict(x):\n    return x[:, :2]\n", MATRIX, MATRIX_OUT)

    response = served.host.handle(infer([1, 2, 3, 4]))

    assert (response.status, body_of(response)["code"]) == (500, "INTERNAL")


# --- batches ---------------------------------------------------------------------------------------------------------

COUNTING = "calls = []\ndef predict(x):\n    calls.append(len(x))\n    return x * 2\n"


def calls_of(served: Any) -> list[int]:
    return sys.modules[served.host.manifest.loader["module"]].calls  # type: ignore[no-any-return]


def test_requests_that_arrive_together_share_one_predict(serve: Any) -> None:
    served = serve(COUNTING, MATRIX, MATRIX_OUT)
    requests = [infer([n, 0, 0, 0], *([[n, 1, 1, 1]] * (n % 2))) for n in range(5)]

    responses = served.host.handle_many(requests)

    assert [body_of(r)["outputs"][0]["data"][0] for r in responses] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert [body_of(r)["outputs"][0]["shape"] for r in responses] == [[1, 4], [2, 4], [1, 4], [2, 4], [1, 4]]
    assert calls_of(served) == [7]
    assert [line["batch"] for line in served.log[1:]] == [5] * 5
    assert [line["rows"] for line in served.log[1:]] == [1, 2, 1, 2, 1]


def test_one_batch_is_one_write_to_the_log(doubling: Any) -> None:
    before = len(doubling.writes)

    doubling.host.handle_many([infer([1, 2, 3, 4])] * 7 + [Request(path="/nowhere")])

    assert len(doubling.writes) == before + 1
    assert len(doubling.writes[-1].splitlines()) == 8


def test_a_model_that_is_not_row_wise_is_asked_for_each_request(serve: Any) -> None:
    served = serve(COUNTING, MATRIX, MATRIX_OUT, row_wise=False)

    served.host.handle_many([infer([1, 2, 3, 4])] * 3)

    assert calls_of(served) == [1, 1, 1]


FUSSY = """
calls = []
def predict(x):
    calls.append(len(x))
    if (x < 0).any():
        raise RuntimeError("negative")
    return x * 2
"""


def test_a_bad_row_hurts_only_its_own_request(serve: Any) -> None:
    served = serve(FUSSY, MATRIX, MATRIX_OUT)
    requests = [infer([1, 2, 3, 4]), infer([-1, 2, 3, 4]), Request(path=INFER, body=b"{"), infer([2, 2, 2, 2])]

    responses = served.host.handle_many(requests)

    assert [response.status for response in responses] == [200, 500, 400, 200]
    assert calls_of(served) == [3, 1, 1, 1]


def test_a_model_that_loses_rows_in_a_batch_is_asked_for_each_request(serve: Any) -> None:
    served = serve("def predict(x):\n    return x[:1] * 2\n", MATRIX, MATRIX_OUT)

    responses = served.host.handle_many([infer([1, 1, 1, 1]), infer([2, 2, 2, 2])])

    assert [body_of(r)["outputs"][0]["data"][0] for r in responses] == [2.0, 4.0]


def test_requests_of_other_shapes_and_outputs_do_not_share(serve: Any) -> None:
    served = serve(
        "calls = []\ndef predict(x):\n    calls.append(x.shape)\n    return {'a': x, 'b': x}\n",
        [("input", "INT64", (-1, -1))],
        [("a", "INT64", (-1, -1)), ("b", "INT64", (-1, -1))],
        output_kind="mapping",
    )

    def ask(columns: int, *names: str) -> Request:
        tensor = {"name": "input", "shape": [1, columns], "datatype": "INT64", "data": [1] * columns}
        return Request(
            path=INFER, body=json.dumps({"inputs": [tensor], "outputs": [{"name": n} for n in names]}).encode()
        )

    responses = served.host.handle_many([ask(2), ask(3), ask(2), ask(3, "a"), ask(3, "a")])

    assert [response.status for response in responses] == [200] * 5
    assert sorted(calls_of(served)) == [(1, 3), (2, 2), (2, 3)]


DATA = st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(DATA, max_size=3),
            st.booleans(),
            st.sampled_from([None, ("a",), ("b", "a")]),
            st.sampled_from(["infer", "rows", "broken"]),
        ),
        max_size=6,
    )
)
def test_an_answer_does_not_tell_whether_it_was_made_alone_or_in_a_batch(mixed: Any, made: Any) -> None:
    requests = []
    for rows, binary, outputs, sort in made:
        if sort == "rows":
            requests.append(Request(path="/invocations", body=json.dumps(rows).encode()))
            continue
        tensor = Tensor("input", "FP64", [len(rows), 4], rows)
        body, headers = format_request([tensor], binary=binary, outputs=outputs, request_id="i")
        requests.append(Request(path=INFER, headers=headers, body=body[3:] if sort == "broken" else body))

    alone = [
        steady(mixed.host.handle(Request(path=r.path, headers=r.headers, body=r.body, request_id="x")))
        for r in requests
    ]
    again = [Request(path=r.path, headers=r.headers, body=r.body, request_id="x") for r in requests]

    assert [steady(response) for response in mixed.host.handle_many(again)] == alone


@pytest.fixture
def mixed(serve: Any) -> Any:
    """A row-wise model with a number and a text for each row, warm."""
    source = "def predict(x):\n    return {'a': x.sum(axis=1), 'b': [f'{v[0]:.2f}' for v in x]}\n"
    outputs = [("a", "FP64", (-1,)), ("b", "BYTES", (-1,), {"content_type": "str"})]
    served = serve(source, MATRIX, outputs, output_kind="mapping")
    served.host.handle(infer([1, 2, 3, 4]))
    return served


# --- the log ---------------------------------------------------------------------------------------------------------


def test_every_request_is_one_line_with_every_key(doubling: Any) -> None:
    doubling.host.handle(infer([1, 2, 3, 4]))
    doubling.host.handle(Request(path="/no\nwhere", body=b"123"))

    start, good, bad = doubling.log
    assert start["event"] == "start"
    assert set(start) == {"event", "at", "revision", "digest", "import_ms", "load_ms", "pid"}
    assert list(good) == list(bad) == LOG_KEYS
    assert (good["route"], good["status"], good["code"], good["rows"], good["batch"], good["error"]) == (
        "infer",
        200,
        "",
        1,
        1,
        "",
    )
    assert (bad["route"], bad["status"], bad["code"], bad["bytes_in"]) == ("unknown", 404, "NOT_FOUND", 3)
    assert good["digest"] == doubling.host.digest[:12]
    assert good["ms"] >= good["predict_ms"] > 0


def test_only_the_first_calls_of_the_model_are_cold(doubling: Any) -> None:
    ready = doubling.host.handle(Request(method="GET", path="/v2/health/ready"))
    first = doubling.host.handle_many([infer([1, 2, 3, 4])] * 2)
    then = doubling.host.handle(infer([1, 2, 3, 4]))

    assert [r.headers["x-polyserve-cold"] for r in (ready, *first, then)] == ["0", "1", "1", "0"]
    assert [line["cold"] for line in doubling.log[1:]] == [False, True, True, False]


def test_the_time_in_the_queue_counts(doubling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from time import perf_counter

    request = infer([1, 2, 3, 4])

    doubling.host.handle(Request(path=request.path, body=request.body, received=perf_counter() - 0.5))

    assert doubling.log[-1]["queue_ms"] >= 500
    assert doubling.log[-1]["ms"] >= doubling.log[-1]["queue_ms"]


def test_a_log_that_cannot_be_written_withholds_no_answer(package: Any) -> None:
    def broken(_: bytes) -> None:
        raise BrokenPipeError

    host = Host(package("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT), sink=broken)
    host.load()

    assert host.handle(infer([1, 2, 3, 4])).status == 200


def test_lines_go_to_standard_output_unless_told_otherwise(package: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(package("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT))
    host.load()
    host.handle(infer([1, 2, 3, 4]))

    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["start", "request"]


# --- loading ---------------------------------------------------------------------------------------------------------


def refused(root: Path) -> str:
    lines: list[bytes] = []
    host = Host(root, sink=lines.append)
    with pytest.raises(LoadError) as caught:
        host.load()
    assert not host.ready
    assert host.handle(Request(method="GET", path="/v2/health/ready")).status == 503
    assert host.handle(Request(method="GET", path="/v2/health/live")).status == 200
    return str(caught.value)


def test_nothing_is_ready_before_the_model_is_loaded(package: Any) -> None:
    host = Host(package("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT), sink=lambda _: None)

    for request in (Request(method="GET", path="/v2/health/ready"), infer([1, 2, 3, 4]), Request(path="/nowhere")):
        response = host.handle(request)
        assert (response.status, body_of(response)["code"]) == (503, "UNAVAILABLE")
    with pytest.raises(LoadError, match="not loaded yet"):
        _ = host.manifest


def test_nothing_of_a_changed_package_runs(package: Any) -> None:
    root = package("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT)
    module = next((root / "code").iterdir())
    module.write_text("raise SystemError('ran')\n")

    assert f"code/{module.name}" in refused(root)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"python": "2.7"}, "the package is locked to Python 2.7, and this is Python 3."),
        ({"requirements": ("numpy==0.1",)}, f"numpy is locked to 0.1, and {np.__version__} is installed"),
        ({"requirements": ("no-such-thing==1.0",)}, "no-such-thing is locked to 1.0, and is not installed"),
    ],
    ids=["python", "version", "missing"],
)
def test_skew_is_refused_with_both_versions(package: Any, fields: dict[str, Any], expected: str) -> None:
    root = package("raise SystemError('ran')\n", MATRIX, MATRIX_OUT, **fields)

    assert expected in refused(root)


def test_versions_that_are_as_locked_are_accepted(serve: Any) -> None:
    assert serve(COUNTING, MATRIX, MATRIX_OUT, requirements=(f"numpy=={np.__version__}",)).host.ready


@pytest.mark.parametrize("failure", ["raise OSError('no disk')", "import sys; sys.exit(3)", "def other(): pass"])
def test_a_model_that_cannot_be_loaded_says_why(package: Any, failure: str) -> None:
    assert "loading model 'tiny' failed: " in refused(package(f"{failure}\n", MATRIX, MATRIX_OUT))


def test_a_directory_that_is_no_package_is_refused(tmp_path: Path) -> None:
    assert "manifest.json cannot be read" in refused(tmp_path)


def test_threads_that_load_together_load_once(package: Callable[..., Path], serve: Any) -> None:
    lines: list[bytes] = []
    host = Host(package("def predict(x):\n    return x\n", MATRIX, MATRIX_OUT), sink=lines.append)
    together = threading.Barrier(4)

    def load(_: int) -> None:
        together.wait(30)
        host.load()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(load, range(4)))

    assert len(lines) == 1


def test_threads_are_answered_each_with_its_own(doubling: Any) -> None:
    def ask(n: int) -> list[float]:
        if n % 3:
            return body_of(doubling.host.handle(infer([n, n, n, n])))["outputs"][0]["data"]  # type: ignore[no-any-return]
        both = doubling.host.handle_many([infer([n, n, n, n])] * 2)
        return body_of(both[1])["outputs"][0]["data"]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(200)))

    assert answers == [[2.0 * n] * 4 for n in range(200)]
