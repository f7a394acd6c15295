"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}} and a fitting status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rung.errors import ConfigError, EngineError, ModelError, RungError

# Errors of the engine and the model that a request is to blame for, beside every ConfigError.
OF_THE_REQUEST = {
    "bad-constraint": "invalid_request_error",
    "chat-template-refused": "invalid_request_error",
    "constraint-failed": "invalid_request_error",
    "constraint-unsupported": "invalid_request_error",
    "context-overflow": "context_length_exceeded",
    "control-token": "invalid_request_error",
    "embedding-unsupported": "invalid_request_error",
    "no-chat-template": "invalid_request_error",
    "scoring-unsupported": "invalid_request_error",
}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):  # noqa: N818  it is an answer, not a failure of the server
    """A request that is not served: status, code, message, and headers of the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(error: RungError) -> Refused:
    """Return one of Rung's errors as an answer: the request's fault, or the server's."""
    message = f"{error}; {error.hint}" if error.hint else str(error)
    if isinstance(error, ConfigError):
        return Refused(400, error.code, message)
    if isinstance(error, (EngineError, ModelError)) and error.code in OF_THE_REQUEST:
        code = OF_THE_REQUEST[error.code]
        return Refused(400, code if code != "invalid_request_error" else error.code, message)
    if error.code == "model-unloaded":
        return Refused(503, error.code, message, headers={"Retry-After": "1"})
    return Refused(500, error.code, message)
