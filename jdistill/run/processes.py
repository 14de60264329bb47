"""Several processes that share one run: how they find each other, agree, and end together.

JAX's distributed runtime connects them and moves all tensors. What is here beside it is a watch: every process holds a
connection to the first one, through which it learns at once when another has ended, and which one. (A collective whose
partner is gone may wait for ever, and JAX's own watch ends a process without a word about who was missing.)
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jdistill.errors import ConfigError, TrainingError
from jdistill.run.output import Output

BEAT_S = 5.0
"""Seconds between signs of life."""
SILENCE_S = 40.0
"""Seconds without one after which a process counts as gone: its machine, or the way to it."""
GRACE_S = 2.0
"""Seconds in which a process that shares another's error may say so itself."""
TEXT_BYTES = 4096
START_S = 300
"""Seconds in which all processes must have started."""
NOISE = re.compile(rb"^\[Gloo\] Rank|^[EFW]\d{4} .*(coordination_service|client\.h|preemption)")
"""How lines of the runtime begin that say in a page what our one line says."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, and which of them this is."""

    coordinator: str
    """``host:port`` of the first one's JAX service."""
    number: int
    id: int
    local_id: int | None = None
    """Which of this machine's it is, where the launcher says."""


def find_group(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Group | None:
    """The processes that a command line, or the launcher that ran it, speaks of; None where this one is alone.

    Raises:
        ConfigError: half of it is missing, or makes no sense.
    """
    said = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if any(value is not None for value in said.values()):
        if missing := [name for name, value in said.items() if value is None]:
            raise ConfigError(f"{missing[0]} is missing: --coordinator, --num_processes and --process_id go together")
        assert coordinator is not None and num_processes is not None and process_id is not None
        group = Group(coordinator, num_processes, process_id)
    elif distributed:
        group = _of_launcher(dict(os.environ))
    else:
        return None
    if not re.fullmatch(r".+:\d+", group.coordinator):
        raise ConfigError(f"--coordinator {group.coordinator}: expected HOST:PORT")
    if not 0 <= group.id < group.number:
        raise ConfigError(f"--process_id {group.id}: expected 0 to {group.number - 1}")
    return group if group.number > 1 else None


def _of_launcher(env: dict[str, str]) -> Group:
    """From the variables that torchrun, or Slurm's srun, sets."""
    try:
        if "RANK" in env:
            # The launcher itself listens on MASTER_PORT.
            coordinator = f"{env['MASTER_ADDR']}:{int(env['MASTER_PORT']) + 1}"
            return Group(coordinator, int(env["WORLD_SIZE"]), int(env["RANK"]), int(env["LOCAL_RANK"]))
        if "SLURM_PROCID" in env:
            number, rank, local = (int(env[f"SLURM_{name}"]) for name in ("NTASKS", "PROCID", "LOCALID"))
            port = 61_000 + int(env["SLURM_JOB_ID"]) % 4_000
            return Group(f"{_first_host(env['SLURM_STEP_NODELIST'])}:{port}", number, rank, local)
    except (KeyError, ValueError) as e:
        raise ConfigError(f"--distributed: the launcher's environment is not complete ({e})") from e
    raise ConfigError(
        "--distributed: neither torchrun nor srun has started this; there are also --coordinator HOST:PORT "
        "--num_processes N --process_id I"
    )


def _first_host(nodes: str) -> str:
    """The first of Slurm's list: ``gpu[07-12,15],cpu3`` begins with ``gpu07``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if not found:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes}")
    return found[1] + (found[2] or "")


# -- the group of this process -------------------------------------------------------------------------------------

_watch: Watch | None = None


def join(group: Group) -> None:
    """Become one of the processes. Before JAX computes anything.

    Raises:
        ConfigError: the others cannot be reached.
    """
    global _watch
    import jax

    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    _quieten()
    try:
        jax.distributed.initialize(
            group.coordinator, group.number, group.id, initialization_timeout=START_S, heartbeat_timeout_seconds=40
        )
    except RuntimeError as e:
        raise ConfigError(
            f"process {group.id} of {group.number} cannot reach the others at {group.coordinator} within {START_S} s "
            f"({' '.join(str(e).split())[:100]})"
        ) from e
    if group.id:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  One process speaks.
    _watch = Watch(group, share(_free_port(group) if group.id == 0 else None))


def process_id() -> int:
    """0 in the process that writes and speaks, which may be the only one."""
    return _watch.group.id if _watch else 0


def number() -> int:
    """How many processes there are."""
    return _watch.group.number if _watch else 1


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return process_id() == 0


def largest(value: int) -> int:
    """The largest of what all processes say, in each of them. All must call this, in the same order."""
    if _watch is None:
        return value
    import numpy as np

    return int(gathered(np.int32(value)).max())


def gathered(value: Any) -> Any:
    """The array ``value``, of 32 bits a number, of every process, (processes, ...). All must call this, as before."""
    import numpy as np
    from jax.experimental import multihost_utils

    return np.asarray(value)[None] if _watch is None else multihost_utils.process_allgather(value)


def share(value: Any) -> Any:
    """What the first process says (JSON), in each of them. All must call this, in the same order."""
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    padded = np.frombuffer(text.ljust(TEXT_BYTES), np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).decode())


def told_by_main(value: Callable[[], Any]) -> Any:
    """``value()`` of the first process, in each of them."""
    if _watch is None:
        return value()
    return share(value() if is_main() else None)


def own_file(path: Path) -> Path:
    """Where this process writes what goes to ``path``: beside it, with the process's number, but for the first one."""
    return path if is_main() else path.with_name(f"{path.stem}.{process_id()}{path.suffix}")


def leave() -> None:
    """Tell the others that this process ends, and all is well."""
    if _watch is not None:
        _watch.leave()


def fail(message: str, print_line: Callable[[], None], status: int) -> int:
    """End with an error: print a line, in one process only. Returns the ``status`` where this process is alone."""
    if _watch is None or _watch.fail(message):
        print_line()
    if _watch is not None:
        sys.stderr.flush()
        os._exit(status)  # JAX would wait for the others, which are ending too.
    return status


def await_the_end() -> None:
    """Wait for the watch to end this process, where another one is gone or about to end with an error."""
    if _watch is not None:
        time.sleep(2 * GRACE_S)


# -- the watch -----------------------------------------------------------------------------------------------------


def _free_port(group: Group) -> int:
    """Listen for the watch's connections."""
    global _listener
    _listener = socket.create_server(("", 0), backlog=group.number)
    port: int = _listener.getsockname()[1]
    return port


_listener: socket.socket | None = None


class Watch:
    """Connections between the first process and every other, which tell when one of them ends."""

    def __init__(self, group: Group, port: int):
        self.group = group
        self._leaving = False
        self._lock = threading.Lock()
        if group.id == 0:
            assert _listener is not None
            connections = [_listener.accept()[0] for _ in range(group.number - 1)]
        else:
            connections = [socket.create_connection((group.coordinator.rpartition(":")[0], port), timeout=START_S)]
        self._peers = [_Peer(connection) for connection in connections]
        for peer in self._peers:
            peer.tell(id=group.id, host=socket.gethostname())
            peer.introduced(peer.hear())
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True, name="watch").start()
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def leave(self) -> None:
        """This process ends, and all is well."""
        self._leaving = True
        for peer in self._peers:
            peer.tell(left=True)

    def fail(self, message: str) -> bool:
        """This process ends with an error. The first one prints it."""
        self._leaving = True
        for peer in self._peers:
            peer.tell(failed=message)
        return self.group.id == 0

    def _beat(self) -> None:
        while True:
            for peer in self._peers:
                peer.tell(alive=True)
            time.sleep(BEAT_S)

    def _listen(self, peer: _Peer) -> None:
        while True:
            said = peer.hear()
            if said is None:
                hint = "all that the last checkpoint holds is saved, and --resume goes on with it"
                self._end(f"{self._name(peer.id, peer.host)} has ended; {hint}")
            if "left" in said:
                return
            if "gone" in said:
                self._end(said["gone"])
            if "failed" in said:
                if self.group.id:
                    os._exit(1)  # The first one has told.
                time.sleep(GRACE_S)
                self._end(f"{self._name(peer.id, peer.host)}: {said['failed']}")

    def _end(self, message: str) -> NoReturn:
        """Another process is gone, and nothing can be computed without it."""
        with self._lock:
            if not self._leaving:
                self._leaving = True
                for peer in self._peers:
                    peer.tell(gone=message)
                if self.group.id == 0 or message.startswith("process 0 "):
                    print(f"error: {message}", file=sys.stderr, flush=True)
                os._exit(1)
        threading.Event().wait()  # This process is ending already.
        raise AssertionError

    def _name(self, process: int, host: str) -> str:
        return f"process {process} of {self.group.number} (on {host})"


class _Peer:
    """One connection, on which lines of JSON go to and fro."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SILENCE_S)
        self._connection = connection
        self._lines = connection.makefile("rb")
        self.id, self.host = -1, "?"

    def introduced(self, said: dict[str, Any] | None) -> None:
        """Remember who is there."""
        if said is None:
            raise TrainingError("another process ended while the run began")
        self.id, self.host = said["id"], said["host"]

    def tell(self, **said: Any) -> None:
        """Say something; whoever is gone does not hear it."""
        try:
            self._connection.sendall(json.dumps(said).encode() + b"\n")
        except OSError:
            return

    def hear(self) -> dict[str, Any] | None:
        """The next thing said; None if the other end is gone."""
        try:
            line = self._lines.readline()
            said: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
            return said
        except (OSError, ValueError):
            return None


# -- what the runtime prints ---------------------------------------------------------------------------------------


def _quieten() -> None:
    """Keep back what the distributed runtime itself prints: greetings, and a page about a process that is gone.

    What Python prints does not go this way.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stdout.flush()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        real = os.dup(descriptor)
        setattr(sys, name, Output(os.fdopen(real, "w", buffering=1)))
        reading, writing = os.pipe()
        os.dup2(writing, descriptor)
        os.close(writing)
        threading.Thread(target=_forward, args=(reading, real), daemon=True, name=name).start()


def _forward(reading: int, real: int) -> None:
    is_last_word = False
    for line in os.fdopen(reading, "rb"):
        noise = NOISE.match(line) is not None
        is_last_word |= noise and line.startswith(b"F")  # A stack trace follows.
        if not noise and not is_last_word:
            os.write(real, line)
