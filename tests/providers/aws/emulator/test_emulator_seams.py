"""What the emulator uses of moto that moto does not promise: a new version that changes it fails here."""

import ast
import inspect
from importlib.metadata import version

from moto.awslambda import models
from moto.core.request import environ_key_for_header, should_preserve_original_header_name
from moto.s3 import notifications
from moto.s3.models import FakeKey
from moto.sts.models import STSBackend


def test_moto_is_the_version_that_the_emulator_was_written_for():
    assert version("moto") == "5.2.5"


def test_motos_services_find_a_function_and_invoke_it_in_the_two_calls_that_are_replaced():
    # From the source: where an emulator runs in this process, it has replaced the method.
    tree = ast.parse(inspect.getsource(models))
    backend = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "LambdaBackend")
    method = next(node for node in backend.body if isinstance(node, ast.FunctionDef) and node.name == "get_function")
    found = [argument.arg for argument in method.args.args]
    source = inspect.getsource(notifications._invoke_awslambda)

    assert found == ["self", "function_name_or_arn", "qualifier"]
    assert "lambda_backend.get_function(fn_arn)" in source
    assert "func.invoke(json.dumps(event_body), {}, {})" in source


def test_an_object_keeps_its_bytes_in_a_file_that_can_be_read_in_part():
    key = FakeKey("name", b"0123456789", account_id="123456789012", region_name="us-east-1")
    with key.lock:
        key._value_buffer.seek(3)
        found = key._value_buffer.read(4)

    assert found == b"3456"


def test_a_session_of_a_role_is_made_and_kept_where_identities_look_for_it():
    parameters = list(inspect.signature(STSBackend.assume_role).parameters)

    assert parameters == ["self", "region_name", "role_session_name", "role_arn", "policy", "duration", "external_id"]
    assert STSBackend("us-east-1", "123456789012").assumed_roles == []


def test_headers_reach_moto_under_the_names_that_its_own_server_gives_them():
    assert environ_key_for_header("X-Amz-Meta-My_Key") == "HTTP_X_AMZ_META_MY_KEY"
    assert should_preserve_original_header_name("x-amz-meta-my_key")
