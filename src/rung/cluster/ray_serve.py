"""Serving on a Ray cluster: Rung's own application in one deployment for each base model, behind one entrance.

The entrance checks the key, reads which artifact a request names, and passes it to the deployment of that artifact's
base model. There Ray sends requests for one artifact to the replicas that have it (`serve.multiplexed`), loads it where
it is missing, and unloads what was not used for longest. Ray starts and ends replicas by the requests under way.

    serve run rung.cluster.ray_serve:build artifacts='{"intents": "/artifacts/intents"}'
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from rung.artifact.artifact import Artifact
from rung.climbing.trust import check_allowed
from rung.errors import ConfigError, MachineError, RungError, needed_by
from rung.serving.access import OPEN, Access, KeyRing, access_rules
from rung.serving.app import app_with
from rung.serving.limits import Refused, RequestLimits, check_json, read_body, refusal
from rung.serving.on_demand import MOST
from rung.serving.served import Served, ServedArtifact

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

TASKS = "/v1/tasks/"
DRAIN_SECONDS = 60.0  # that a replica gets to finish its answers


class RayServing(BaseModel):
    """What is served, and how far it grows: the `args` of the application.

    Attributes:
        artifacts: folders that every node sees, by the names that clients ask for.
        key_file: a file of hashed keys; without one, only requests with a Host of this machine are answered.
        hosts: more names that the Host header may have.
        replicas: the fewest and the most replicas of each base model.
        target: requests under way in a replica for which Ray adds no other one: about what one batch holds.
        most: requests that a replica takes at once; others wait at the entrance.
        queue: requests that may wait there for each base model; beyond it: 429.
        keep: artifacts that a replica has in memory at once.
        cpus, gpus: what a replica takes.
    """

    model_config = ConfigDict(extra="forbid")

    artifacts: Annotated[dict[str, str], Field(min_length=1)]
    key_file: str | None = None
    hosts: list[str] = []
    replicas: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 4)
    target: Annotated[int, Field(ge=1)] = 32
    most: Annotated[int, Field(ge=1)] = 64
    queue: Annotated[int, Field(ge=1)] = 512
    keep: Annotated[int, Field(ge=1)] = MOST
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0


def build(args: Mapping[str, Any]) -> Application:
    """Make the application that Ray Serve runs.

    Args:
        args: see `RayServing`.

    Raises:
        ArtifactError: an artifact is damaged, or is not there.
        ConfigError: others could ask without a key, or an artifact would run code that was not allowed here.
        MachineError: `missing-extra`: Ray is not installed.
    """
    with needed_by("serving on Ray", extra="cluster", error=MachineError):
        from ray import serve
        from ray.serve.config import AutoscalingConfig

    wanted = RayServing.model_validate(dict(args))
    groups: dict[str, dict[str, str]] = {}
    for name, folder in wanted.artifacts.items():
        check_allowed(Path(folder))
        artifact = Artifact.load(folder)
        base = f"{artifact.model} {artifact.weights.base}".strip() if artifact.decoder.uses_llm else "no model"
        groups.setdefault(base, {})[name] = folder
    least, most = wanted.replicas
    if least > most:
        raise ConfigError("bad-option", f"replicas {least} to {most}", hint="give the fewest first: [1, 4]")
    growing = AutoscalingConfig(
        min_replicas=least, max_replicas=most, target_ongoing_requests=wanted.target, downscale_delay_s=300.0
    )
    deployments: dict[str, Any] = {}
    for number, (base, folders) in enumerate(groups.items()):
        replica = serve.deployment(
            _replica(wanted.keep), name=f"base-{number}", autoscaling_config=growing,
            max_ongoing_requests=wanted.most, max_queued_requests=wanted.queue,
            graceful_shutdown_timeout_s=DRAIN_SECONDS,
            ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        ).bind(folders)  # fmt: skip
        deployments[base] = replica
    places = {name: number for number, folders in enumerate(groups.values()) for name in folders}
    entrance = serve.deployment(
        Entrance, name="entrance", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )  # fmt: skip
    application: Application = entrance.bind(places, wanted.key_file, wanted.hosts, *deployments.values())
    return application


class Entrance:
    """Checks keys, and passes each request to the deployment that has the artifact's base model."""

    def __init__(
        self, places: Mapping[str, int], key_file: str | None, hosts: list[str], *replicas: DeploymentHandle[Any]
    ) -> None:
        self._places, self._replicas, self._limits = places, replicas, RequestLimits()
        ring = None if key_file is None else KeyRing(Path(key_file))
        named = frozenset(host.lower() for host in hosts)
        self._access: Access = access_rules("127.0.0.1" if ring is None else "0.0.0.0", ring, hosts=named)  # noqa: S104

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._answer(request)
        except (Refused, RungError) as error:
            refused = refusal(error)
            return JSONResponse(refused.body(), refused.status, refused.headers)

    async def _answer(self, request: Request) -> Response:
        from ray.serve.exceptions import BackPressureError

        path = request.url.path
        self._access.check(path, request.headers, request.url.scheme)
        if path in OPEN:
            return JSONResponse({"status": "ready"})
        if path == "/v1/models":
            listed = [{"id": name, "object": "model", "owned_by": "rung"} for name in self._places]
            return JSONResponse({"object": "list", "data": listed})
        body = await read_body(request.receive, request.headers.get("content-length"), self._limits)
        check_json(body, self._limits)
        name = _named(path, body)
        if name not in self._places:
            known = ", ".join(map(repr, self._places))
            raise Refused(404, "model_not_found", f"no model is served as {name!r}; there are {known}", param="model")
        handle = self._replicas[self._places[name]].options(stream=True, multiplexed_model_id=name)
        type_ = request.headers.get("content-type", "application/json")
        pieces = handle.answer.remote(request.method, path, request.url.query, type_, body)
        try:
            head = json.loads(await anext(pieces))
        except BackPressureError as full:
            message = "too many requests wait for this model; try again in 1 s"
            raise Refused(429, "queue-full", message, headers={"Retry-After": "1"}) from full
        return StreamingResponse(pieces, head["status"], head["headers"])


def _named(path: str, body: bytes) -> str:
    """The artifact that a request names, in its path or in its body."""
    if path.startswith((TASKS, "/v1/models/")):
        return path.removeprefix(TASKS).removeprefix("/v1/models/").partition("/")[0]
    try:
        values = json.loads(body or b"{}")
    except ValueError:
        values = {}
    name = values.get("model") if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise Refused(400, "invalid-request", "`model` names the artifact that answers", param="model")
    return name


def _replica(keep: int) -> type[Any]:
    """The class of a deployment's replicas, which keep so many artifacts in memory."""
    from ray import serve

    class Replica:
        """Rung's application with the artifacts of one base model."""

        def __init__(self, folders: Mapping[str, str]) -> None:
            self._folders, self._served = folders, Served()
            # The entrance has checked the key and the Host; only Ray's own processes reach this.
            self._app = app_with(self._served, access=Access(hosts=None), on_demand=self)

        @serve.multiplexed(max_num_models_per_replica=keep)  # type: ignore[untyped-decorator]
        async def artifact(self, name: str) -> _Loaded:
            loaded = await asyncio.to_thread(self._served.load, Path(self._folders[name]), name)
            return _Loaded(self._served, loaded)

        async def need(self, served: Served, name: str) -> ServedArtifact | None:
            """The artifact that a request names; the request has it to its end, also where Ray makes room meanwhile."""
            del served
            if name not in self._folders:
                return None
            loaded: _Loaded = await asyncio.shield(self.artifact(name))  # the load goes on when this client leaves
            return loaded.artifact

        async def answer(self, method: str, path: str, query: str, kind: str, body: bytes) -> AsyncIterator[bytes]:
            async for piece in answers(self._app, method, path, query, kind, body):
                yield piece

        def __del__(self) -> None:
            self._served.close()

    return Replica


class _Loaded:
    """An artifact in a replica, until Ray makes room."""

    def __init__(self, served: Served, artifact: ServedArtifact) -> None:
        self.artifact = artifact
        self._unload = [partial(served.unload, artifact.name)]

    def __del__(self) -> None:
        """Unload the artifact, once: after Ray Python calls this, too, when it may have been loaded again."""
        while self._unload:
            self._unload.pop()()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    return json.dumps({"status": status, "headers": dict(headers)}).encode()


async def answers(app: Any, method: str, path: str, query: str, kind: str, body: bytes) -> AsyncIterator[bytes]:
    """Run one request through an ASGI application: first status and headers as JSON, then the pieces of the body."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    scope: MutableMapping[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": headers,
        "client": None, "server": None,
    }  # fmt: skip
    messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
    given, left = [body], asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        if given:
            return {"type": "http.request", "body": given.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(app(scope, receive, messages.put))
    running.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield _head(
                    message["status"], {k.decode("latin-1"): v.decode("latin-1") for k, v in message["headers"]}
                )
            elif message.get("body"):
                yield message["body"]
        await running
    finally:  # the client may have left
        left.set()
        running.cancel()
