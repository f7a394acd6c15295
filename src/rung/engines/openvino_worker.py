"""The process in which OpenVINO serves: `python -m rung.engines.openvino_worker`; see `rung.engines.openvino_process`.

Pickles on both pipes. First read the model's files and the precision, answered by what the engine says of itself. Then
`("session",)` begins anew, `("add", key, request)` takes a completion in, `("cancel", key)` drops one, and `("step",)`
goes on with all; each is answered by (result, error), one of them None.
"""

from __future__ import annotations

import pickle
import signal
import traceback
from contextlib import suppress
from typing import Any, BinaryIO

from rung.errors import EngineError, RungError
from rung.user_code import own_pipes


def main() -> None:
    """Answer calls until stdin ends, which it does when the parent does."""
    # A terminal and systemd tell every process of the server to end; its parent decides when nothing is left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    calls, replies = own_pipes()
    with suppress(EOFError, BrokenPipeError):
        _serve(calls, replies)


def _serve(calls: BinaryIO, replies: BinaryIO) -> None:
    from rung.engines.openvino import OpenVinoEngine

    def reply(value: Any) -> None:
        pickle.dump(value, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()

    try:
        engine = OpenVinoEngine(*pickle.load(calls))  # noqa: S301  from the parent alone
    except RungError as error:
        return reply((None, error))
    reply((engine.info, None))
    session = engine.session()
    while True:
        name, *arguments = pickle.load(calls)  # noqa: S301
        try:
            result = None
            if name == "session":
                session = engine.session()
            else:
                result = getattr(session, name)(*arguments)
            reply((result, None))
        except RungError as error:
            reply((None, error))
        except Exception as error:  # of OpenVINO: the parent gives it up for lost, and goes on with a new session
            traceback.print_exc()
            lost = f"the engine failed: {type(error).__name__}: {error}"
            reply((None, EngineError("generation-failed", lost, hint="see the server's log")))


if __name__ == "__main__":
    main()
