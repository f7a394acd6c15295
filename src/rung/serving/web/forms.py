"""Forms: read without parsing anything but names and values, and only from pages of this server."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from rung.serving.errors import Refused
from rung.serving.web.site import site_of

FIELDS = 100  # of one form
TOKEN = "form_token"  # noqa: S105  the name of a field


async def form_of(request: Request) -> dict[str, str]:
    """Return the values of a form.

    Raises:
        Refused: it is no form, or it did not come from a page of this session.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "no-form", "this takes forms, which are application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode()
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as error:
        raise Refused(400, "bad-form", f"the form cannot be read: {error}") from error
    values = dict(pairs)
    given = values.pop(TOKEN, "")
    if not site_of(request).sessions.is_form_token(request.headers.get("cookie", ""), given):
        raise Refused(403, "form-expired", "this form is of another session: load the page again")
    return {name: value.replace("\r\n", "\n") for name, value in values.items()}
