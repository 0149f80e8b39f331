"""Real servers on free loopback ports, that can be stopped, paused, and brought back.

Each is started as a foreground process of the test's, in a directory of its own, and ended by its
id. Paused means SIGSTOP for the server and all its children.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from collector.stack.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]


def wait_until(condition: Callable[[], object], seconds: float = 30, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def program(*names: str) -> str:
    """Find a program of the packages in packages.txt."""
    for name in names:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/lib/rabbitmq/bin")
        if found:
            return found
    message = f"{names[0]} is not installed: run tests/stack/setup"
    raise AssertionError(message)


class Server:
    """One server; it keeps its port and its data when it is stopped and started again."""

    patience: ClassVar[float] = 30

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return what Popen is to be told besides."""
        return {}

    def prepare(self) -> None:
        """Make what the server needs, once."""

    def ready(self) -> bool:
        return accepts(self.port)

    def start(self) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, cwd=self.directory, **self.options()
            )
        wait_until(self._up, self.patience, f"the start of {type(self).__name__}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        family = self._family(process)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def pause(self) -> None:
        # The parent before its children are looked for: one that it forks meanwhile would go on.
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        parent.suspend()
        wait_until(lambda: parent.status() == psutil.STATUS_STOPPED, what="the parent's stop")
        for process in self._family():
            # A child may end at this very moment.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _family(self, process: subprocess.Popen[bytes] | None = None) -> list[psutil.Process]:
        process = process or self.process
        assert process is not None
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.port})"

    def _up(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, (code, self.log()[-3_000:])
        return self.ready()

    def log(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")


class Postgres(Server):
    """PostgreSQL, as the user that Debian made for it: it refuses to run as root."""

    @property
    def bin(self) -> Path:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        assert found, "postgresql is not installed: run tests/stack/setup"
        return found[-1].parent

    def options(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        user = pwd.getpwnam("postgres")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def prepare(self) -> None:
        options = self.options()
        if options:
            os.chown(self.directory, options["user"], options["group"])
        subprocess.run(
            [self.bin / "initdb", "-D", self.directory / "data", "-A", "trust", "-U", "shop", "-N"],
            check=True,
            capture_output=True,
            cwd=self.directory,
            **options,
        )

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "max_connections": 30,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.bin / "postgres"), "-D", str(self.directory / "data"), *flags]

    def ready(self) -> bool:
        command = [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop fast: SIGTERM would wait for clients to leave."""
        super().stop(number)

    @property
    def address(self) -> str:
        return f"shop@127.0.0.1:{self.port}/postgres"


class Redis(Server):
    def command(self) -> list[str]:
        redis = program("redis-server")
        return [redis, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]


class Rabbit(Server):
    """RabbitMQ, with an epmd of its own."""

    patience = 90

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.epmd = free_port()

    def options(self) -> dict[str, Any]:
        here = str(self.directory)
        return {
            "env": {
                "PATH": os.environ["PATH"],
                "HOME": here,
                "LANG": "C.UTF-8",
                "RABBITMQ_NODENAME": f"probe{self.port}@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.port),
                "RABBITMQ_DIST_PORT": str(self.port + 1 if self.port < 65_000 else self.port - 1),
                "RABBITMQ_MNESIA_BASE": f"{here}/mnesia",
                "RABBITMQ_LOG_BASE": f"{here}/log",
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_PID_FILE": f"{here}/pid",
                "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/plugins",
                "RABBITMQ_CONF_ENV_FILE": f"{here}/no-such-file",
                "RABBITMQ_CONFIG_FILE": f"{here}/no-such-config",
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
                "ERL_EPMD_PORT": str(self.epmd),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
            }
        }

    def prepare(self) -> None:
        (self.directory / "plugins").write_text("[].\n")

    def command(self) -> list[str]:
        found = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        assert found.exists(), "rabbitmq-server is not installed: run tests/stack/setup"
        return [str(found)]

    def ready(self) -> bool:
        return "Server startup complete" in self.log() and accepts(self.port)

    def stop(self, number: int = signal.SIGTERM) -> None:
        super().stop(number)
        with (self.directory / "server.log").open("wb"):
            """The next start is looked for in there."""

    def close(self) -> None:
        """End the epmd that Erlang started, which outlives it."""
        subprocess.run(
            [program("epmd"), "-port", str(self.epmd), "-kill"], check=False, capture_output=True
        )

    @property
    def address(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"


class Kafka(Server):
    """Kafka without ZooKeeper, from Maven's artifacts."""

    patience = 90

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.controller = free_port()

    @property
    def jars(self) -> Path:
        """Where the jars are; fetched by Maven when they are not there yet."""
        target = ROOT / "build" / "kafka"
        if not any(target.glob("kafka_2.13-*.jar")):
            pom = Path(__file__).parent / "kafka" / "pom.xml"
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={target}"]
            subprocess.run([program("mvn"), "-B", "-q", "-f", pom, *goal], check=True)
        return target

    def prepare(self) -> None:
        (self.directory / "server.properties").write_text(
            "\n".join(
                (
                    "process.roles=broker,controller",
                    "node.id=1",
                    f"controller.quorum.bootstrap.servers=127.0.0.1:{self.controller}",
                    "controller.listener.names=CONTROLLER",
                    f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller}",
                    f"log.dirs={self.directory}/logs",
                    "offsets.topic.replication.factor=1",
                    "transaction.state.log.replication.factor=1",
                    "transaction.state.log.min.isr=1",
                    "auto.create.topics.enable=false",
                )
            )
        )
        identity = "MkU3OEVBNTcwNTJENDM2Qk"
        self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", identity, "-c")

    def command(self) -> list[str]:
        return [*self._command("kafka.Kafka"), "server.properties"]

    def _command(self, main: str) -> list[str]:
        return [program("java"), "-Xmx256m", "-cp", f"{self.jars}/*", main]

    def _java(self, main: str, *arguments: str) -> None:
        command = [*self._command(main), *arguments, "server.properties"]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def started(kind: type[Server], *, start: bool = True) -> Iterator[Any]:
    """Start a server in a directory of its own that any user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="otel-audit-stack-"))
    directory.chmod(0o755)
    server = kind(directory)
    try:
        server.prepare()
        if start:
            server.start()
        yield server
    finally:
        if server.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.resume()
        server.stop()
        if isinstance(server, Rabbit):
            server.close()
        shutil.rmtree(directory, ignore_errors=True)
