"""Jobs as tasks of a Ray cluster: only addresses go through Ray, so its object store stays empty.

Ray finds the places and keeps the worker processes, with the models that they have loaded. Retries are Rung's, the same
as for all executors. Ray's ports run code for whoever reaches them, so a cluster that is started here listens on this
machine alone, without a dashboard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rung.cluster.executor import SILENCE, worker_price
from rung.cluster.job import Resources
from rung.errors import MachineError, needed_by

STORE_BYTES = 100 * 2**20  # of the object store of a cluster that is started here


class RayTasks:
    """Runs every job as one task.

    Args:
        address: `ray://HOST:PORT`; empty for the cluster that RAY_ADDRESS names (`auto`: one that runs here), else one
            that is started on this machine.
        count: the tasks that are sent at once; those without a place wait in Ray, whose autoscaler sees them. None for
            as many as the cluster has places.
    """

    inside = False
    silence = SILENCE  # of what Ray itself loses, it tells sooner

    def __init__(self, address: str = "", count: int | None = None) -> None:
        with needed_by("--on ray", extra="cluster"):
            import ray
        self._ray, self._count, self._started = ray, count, not ray.is_initialized()
        if self._started:
            found = address or os.environ.get("RAY_ADDRESS")
            own: dict[str, Any] = {"address": found} if found else {
                "address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
            try:
                ray.init(log_to_driver=False, **own)
            except (ConnectionError, RuntimeError, ValueError) as error:
                hint = "check the address, and that the cluster has the same version of Ray and Python"
                raise MachineError("worker-lost", f"Ray cannot be reached at {found}: {error}", hint=hint) from error
        self.needs = Resources(gpus=1 if ray.cluster_resources().get("GPU") else 0)
        self._task = ray.remote(max_retries=0)(_run)
        self._running: dict[Any, str] = {}

    def submit(self, uri: str, resources: Resources) -> None:
        """Send a task with the resources of the job."""
        task = self._task.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
        self._running[task.remote(uri)] = uri

    def poll(self) -> Iterable[str]:
        """The jobs whose task has returned, failed, or lost its node."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        ended = []
        for task in ready:
            with suppress(self._ray.exceptions.RayError):  # the job's folder tells whether it is done
                self._ray.get(task)
            ended.append(self._running.pop(task))
        return ended

    def cancel(self, uri: str) -> None:
        """End the task and its process."""
        for task, own in self._running.items():
            if own == uri:
                self._ray.cancel(task, force=True)

    def capacity(self, resources: Resources) -> int:
        """As many as were asked for, also where the cluster has to grow for them; else its places as it is now."""
        if self._count is not None:
            return self._count
        total = self._ray.cluster_resources()
        places = total.get("CPU", 1.0) / max(resources.cpus, 0.001)
        if resources.gpus:
            places = min(places, total.get("GPU", 0.0) / resources.gpus)
        return max(1, int(places))

    def price(self, resources: Resources) -> float:
        """Other machines have a price of their own."""
        return worker_price() * max(1.0, resources.gpus)

    def close(self) -> None:
        """End the tasks, and the connection if it was opened here."""
        for uri in list(self._running.values()):
            self.cancel(uri)
        self._running.clear()
        if self._started:
            self._started = False
            self._ray.shutdown()


def _run(uri: str) -> None:
    """Run a job on a node; its folder has the error, which must not travel as a pickle."""
    from rung.cluster.worker import run_job

    with suppress(Exception):
        run_job(uri)
