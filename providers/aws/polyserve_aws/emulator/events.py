"""HTTP requests as events of payload format 2.0, and a function's answer as an HTTP response.

Function URLs and HTTP APIs share the format ("Invoking Lambda function URLs", Lambda's developer guide; "Working with
AWS Lambda proxy integrations for HTTP APIs", API Gateway's).
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from polyserve.emulation.http import Answer, Call

_TEXT = ("text/", "application/json", "application/javascript", "application/xml", "application/x-www-form-urlencoded")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# What belongs to one connection, not to the message, and what the server writes itself.
_HOP = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


def make_event(
    call: Call, *, api_id: str, host: str, request_id: str, context: Mapping[str, Any], **more: Any
) -> bytes:
    """Return a request as an event.

    Args:
        call: The request.
        api_id: Identifier of the function URL or the API.
        host: Name under which it was called.
        request_id: Identifier of the request.
        context: What the request context has besides, `authorizer` for one.
        more: What else the event has: `pathParameters`, `stageVariables`.
    """
    headers: dict[str, str] = {}
    for name in call.headers:
        lower = name.lower()
        if lower not in {"connection", "cookie", "transfer-encoding"}:
            headers[lower] = ",".join(call.headers.getall(name))
    headers |= {"x-forwarded-for": call.peer, "x-forwarded-proto": "http", "x-forwarded-port": host.rpartition(":")[2]}
    now = time.time()
    at = time.gmtime(now)
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": call.path,
        "rawQueryString": call.raw_query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": api_id,
            "domainName": host,
            "domainPrefix": api_id,
            "http": {
                "method": call.method,
                "path": call.path,
                "protocol": "HTTP/1.1",
                "sourceIp": call.peer,
                "userAgent": call.headers.get("User-Agent", ""),
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": f"{at.tm_mday:02d}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} +0000",
            "timeEpoch": int(now * 1000),
            **context,
        },
        "isBase64Encoded": False,
        **more,
    }
    cookies = call.headers.get("Cookie")
    if cookies:
        event["cookies"] = [cookie.strip() for cookie in cookies.split(";")]
    query: dict[str, str] = {}
    for name, value in parse_qsl(call.raw_query, keep_blank_values=True):
        query[name] = f"{query[name]},{value}" if name in query else value
    if query:
        event["queryStringParameters"] = query
    if call.body:
        event["body"], event["isBase64Encoded"] = _body(call)
    return msgspec.json.encode(event)


def _body(call: Call) -> tuple[str, bool]:
    kind = call.headers.get("Content-Type", "").lower()
    if kind.startswith(_TEXT) or "+json" in kind or "+xml" in kind:
        try:
            return call.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(call.body).decode(), True


def read_response(payload: bytes) -> Answer:
    """Return a function's answer as an HTTP response.

    Raises:
        ValueError: The answer says `statusCode`, and cannot be made into a response.
    """
    try:
        value = msgspec.json.decode(payload)
    except msgspec.DecodeError as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(value, dict) or "statusCode" not in value:
        # Anything else is the body itself.
        body = value.encode() if isinstance(value, str) else payload
        return Answer(200, {"content-type": "application/json"}, body)
    status = value["statusCode"]
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if not isinstance(status, int) or not 100 <= status <= 599:
        raise ValueError(f"statusCode is {status!r}")
    given = value.get("body")
    text = "" if given is None else given if isinstance(given, str) else msgspec.json.encode(given).decode()
    try:
        body = base64.b64decode(text, validate=True) if value.get("isBase64Encoded") else text.encode()
    except binascii.Error as error:
        raise ValueError("isBase64Encoded is true, and the body is no base64") from error
    headers = {str(name).lower(): str(field) for name, field in (value.get("headers") or {}).items()}
    headers = {name: field for name, field in headers.items() if name not in _HOP}
    headers.setdefault("content-type", "application/json")
    if value.get("cookies"):
        headers["set-cookie"] = "\n".join(map(str, value["cookies"]))
    return Answer(status, headers, body)
