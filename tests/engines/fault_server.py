"""A hand-written server on a real socket that answers, and fails, as it is told."""

import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text="hello", prompt=10, output=5, **choice):
    """Return the body of a chat completion."""
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    return {"choices": [message], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


class Reply:
    """One answer: `cut` closes the connection after so many bytes, `delay` waits before it, in seconds."""

    def __init__(self, body, status=200, headers=None, cut=None, delay=0.0, kind="application/json"):
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.headers, self.cut, self.delay, self.kind = status, headers or {}, cut, delay, kind


def events(*chunks, done=True):
    """Return a stream of server-sent events."""
    lines = [f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks]
    return Reply("".join([*lines, "data: [DONE]\n\n" if done else ""]).encode(), kind="text/event-stream")


def delta(text, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


class FaultServer:
    """`replies[path]` are used up one by one; then `answer(path, body)` makes the rest."""

    def __init__(self):
        self.replies = defaultdict(list)
        self.asked = []  # (path, body, headers) of every request
        self.answer = lambda path, body: Reply(completion())
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._reply({})

            def do_POST(self):
                self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _reply(self, body):
                with outer._lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    outer.asked.append((self.path, body, headers))
                    queue = outer.replies[self.path]
                    reply = queue.pop(0) if queue else None
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                reply = reply or outer._default(self.path, body)
                time.sleep(reply.delay)
                with outer._lock:
                    outer._now -= 1
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", reply.kind)
                    self.send_header("Content-Length", str(len(reply.data)))
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(reply.data if reply.cut is None else reply.data[: reply.cut])
                except OSError:
                    pass  # the client has given up: that is what some tests are about
                if reply.cut is not None:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _default(self, path, body):
        if path.endswith("completions"):
            return self.answer(path, body)
        return Reply({"error": {"message": "no such path"}}, 404)

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def reference(self):
        return f"{self.base_url}#m"

    def bodies(self, path="/v1/chat/completions"):
        return [body for asked, body, _ in self.asked if asked == path]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
