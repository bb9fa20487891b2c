"""The contract of calling functions.

    class TestInvoker(InvokerContract): ...

It takes a `harness` fixture (`polyserve.testing.harness.Harness`) and asks a real function, past the client and its leniency.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from polyserve.driver import ErrorCode
from polyserve.testing.functions import MODEL, NAME, Functions
from polyserve.testing.harness import Harness


class InvokerContract:
    """What callers rely on, whatever the platform: one protocol, one error body, no answer without a credential."""

    @pytest.fixture
    def functions(self, harness: Harness) -> Iterator[Functions]:
        """Give a function whose revision 2 has all the traffic."""
        given = Functions(harness)
        given.applied(2)
        given.route({2: 100})
        yield given
        given.gone()

    def test_the_protocol_is_spoken_as_published(self, functions: Functions) -> None:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready"):
            assert functions.send(path).status == 200, path
        described = json.loads(functions.send(f"/v2/models/{MODEL}").body)
        assert described["name"] == MODEL
        assert [(i["name"], i["datatype"], i["shape"]) for i in described["inputs"]] == [("input", "FP64", [-1, 2])]

    def test_an_inference_in_json_answers_in_json(self, functions: Functions) -> None:
        tensor = {"name": "input", "datatype": "FP64", "shape": [1, 2], "data": [1.5, 2.0]}
        body = json.dumps({"id": "mine", "inputs": [tensor]}).encode()

        response = functions.send(f"/v2/models/{MODEL}/infer", method="POST", body=body)

        answer = json.loads(response.body)
        assert response.status == 200
        assert answer["id"] == "mine"
        assert answer["outputs"][0]["data"] == [3.0, 4.0]

    def test_plain_rows_are_answered_with_plain_rows(self, functions: Functions) -> None:
        response = functions.send("/invocations", method="POST", body=b"[[1.5, 2.0]]")

        assert json.loads(response.body) == [[3.0, 4.0]]

    def test_every_answer_says_who_gave_it(self, functions: Functions) -> None:
        headers = functions.send("/invocations", method="POST", body=b"[[1, 2]]", **{"x-request-id": "abc"}).headers

        assert headers["x-request-id"] == "abc"
        assert headers["x-polyserve-revision"] == "2"
        assert headers["x-polyserve-digest"] == functions.spec(2).package_digest
        assert headers["x-polyserve-cold"] in {"0", "1"}
        assert "predict" in headers["server-timing"]

    def test_every_error_has_the_one_body(self, functions: Functions) -> None:
        infer = f"/v2/models/{MODEL}/infer"
        cases = {
            ("POST", infer, b"{"): (400, "INVALID_ARGUMENT"),
            ("POST", infer, b'{"inputs": []}'): (400, "INVALID_ARGUMENT"),
            ("POST", "/invocations", b'[["a", "b"]]'): (400, "INVALID_ARGUMENT"),
            ("GET", "/v2/models/another", b""): (404, "NOT_FOUND"),
            ("GET", "/nowhere", b""): (404, "NOT_FOUND"),
        }
        for (method, path, body), (status, code) in cases.items():
            response = functions.send(path, method=method, body=body, **{"x-request-id": "abc"})
            answer = json.loads(response.body)

            assert (response.status, answer["code"], answer["request_id"]) == (status, code, "abc"), path
            assert set(answer) == {"error", "code", "request_id"}
            assert "Traceback" not in answer["error"]

    def test_a_body_over_the_limit_is_refused_by_both_numbers(self, functions: Functions) -> None:
        spec = functions.spec(2)
        functions.platform.delete(NAME)
        small = replace(spec, request_bytes=1000)
        functions.platform.apply(small)
        functions.wait(small)
        functions.route({2: 100})

        response = functions.send("/invocations", method="POST", body=b" " * 1001)

        assert response.status == 413
        assert "1001" in response.body.decode().replace(",", "")
        assert "1000" in response.body.decode().replace(",", "")

    def test_a_request_over_its_time_is_given_up(self, functions: Functions) -> None:
        spec = functions.spec(2)
        functions.platform.delete(NAME)
        short = replace(spec, timeout=timedelta(seconds=1))
        functions.platform.apply(short)
        functions.wait(short)
        functions.route({2: 100})

        response = functions.send("/invocations", method="POST", body=b"[[-3, 0]]", **{"x-request-id": "abc"})

        assert response.status == 504
        answer = json.loads(response.body)
        assert (answer["code"], answer["request_id"]) == ("DEADLINE_EXCEEDED", "abc")

    def test_nobody_is_answered_without_a_credential(self, functions: Functions) -> None:
        url = functions.provider.invoker.resolve(NAME).url

        assert httpx.post(f"{url}/invocations", content=b"[[1, 2]]", trust_env=False).status_code in {401, 403}

    def test_an_address_does_not_show_its_credential(self, functions: Functions) -> None:
        address = functions.provider.invoker.resolve(NAME)
        secrets = [value for value in address.headers.values() if len(value) > 8]

        assert not any(secret in repr(address) for secret in secrets)

    def test_many_callers_at_once_are_all_answered_each_with_his_own_answer(self, functions: Functions) -> None:
        with functions.endpoint() as endpoint, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: endpoint.invoke([[float(n), 0.0]]), range(200)))

        assert answers == [[[2.0 * n, 0.0]] for n in range(200)]

    def test_a_revision_that_does_not_exist_is_not_found(self, functions: Functions) -> None:
        assert functions.code(lambda: functions.provider.invoker.resolve(NAME, revision=9)) is ErrorCode.NOT_FOUND
