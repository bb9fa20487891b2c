"""How a function on this machine is called: over HTTP on loopback, with the function's token."""

from __future__ import annotations

from polyserve.driver import Address, ErrorCode, HttpCall, HttpReply, Request, Response
from polyserve_local.control import Gateway
from polyserve_local.errors import GatewayError


class LocalInvoker:
    """Calls functions of this machine. Implements `polyserve.driver.Invoker`.

    Args:
        gateway: Reaches the gateway.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def resolve(self, name: str, *, revision: int | None = None) -> Address:
        """Find the listener of a function, or of one revision of it; starts the gateway where it is not running."""
        found = self._gateway.call("resolve", {"name": name, "revision": revision})
        if found is None:
            raise GatewayError(ErrorCode.NOT_FOUND, f"there is no function {name!r}")
        return Address(url=found["url"], headers={"authorization": f"Bearer {found['token']}"})

    def prepare(self, address: Address, request: Request) -> HttpCall:
        """Add the token."""
        headers = {**request.headers, **address.headers}
        if request.request_id:
            headers["x-request-id"] = request.request_id
        return HttpCall(method=request.method, url=address.url + request.path, headers=headers, body=request.body)

    def parse(self, address: Address, reply: HttpReply) -> Response:
        """Return the answer: instance and gateway answer in the one form that every provider's functions do."""
        return Response(status=reply.status, headers=reply.headers, body=reply.body)
