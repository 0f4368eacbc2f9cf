"""`megavoxel` and `snakemake` for many short jobs: each is a fork of one process that has done the imports already.

Importing PyTorch and the like takes longer than a job of a tiny study. A program of `programs()` sends its words,
working directory, environment and open files to a server; the server forks, and the fork runs what the program would.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from functools import cache
from pathlib import Path

import snakemake.cli

import megavoxel
from megavoxel.cli import main

LATE_IMPORTS = (
    "monai.networks.blocks", "monai.networks.nets", "snakemake_executor_plugin_slurm", "torch._dynamo",
    "torch.distributed.run",
)  # fmt: skip
"""What is imported by calls of functions, PyTorch's and Snakemake's among them."""
SNAKEMAKE = """\
#!{python}
import sys
from snakemake.cli import main
sys.exit(main())
"""
CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys
job = {{"words": sys.argv, "folder": os.getcwd(), "names": dict(os.environ)}}
message = json.dumps(job).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
server.sendall(message)
answers = server.makefile()
process = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(answers.readline() or 1))
"""


def python_beside(folder: Path, megavoxel: str) -> Path:
    """A Python with the packages of this one, beside a program `megavoxel` with the given text; below `folder`."""
    here, binaries = Path(sys.prefix), folder / "bin"
    binaries.mkdir(parents=True)
    (folder / "lib").symlink_to(here / "lib")
    if (here / "pyvenv.cfg").exists():
        (folder / "pyvenv.cfg").write_text((here / "pyvenv.cfg").read_text())
    (binaries / "python").symlink_to(Path(sys.executable).resolve())
    write_program(binaries / "megavoxel", megavoxel)
    write_program(binaries / "snakemake", SNAKEMAKE.format(python=binaries / "python"))
    return binaries / "python"


def write_program(path: Path, text: str) -> None:
    """Writes a script that can be called."""
    path.write_text(text)
    path.chmod(0o755)


@cache
def programs() -> Path:
    """A folder with `snakemake` and `megavoxel`, each a fork of a server that ends with this process.

    Its `script` runs a file of Python in the same way.
    """
    folder = Path(tempfile.mkdtemp(prefix="stages-"))  # not in the folder of a test: a socket's address has to be short
    address = str(folder / "server")
    client = CLIENT.format(python=Path(sys.executable).resolve(), address=address)
    binaries = python_beside(folder, client).parent
    for name in ("snakemake", "script"):
        write_program(binaries / name, client)
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)
    return binaries


def run_group(*words: object, processes: int, program: str = "script", folder: Path | None = None) -> str:
    """Runs one of `programs()` in a group of processes, as `torchrun` does; what they wrote to standard error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    members = [
        subprocess.Popen(
            [programs() / program, *map(str, words)], cwd=folder, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [member.communicate(timeout=300)[1] for member in members]
    assert [member.returncode for member in members] == [0] * processes, "\n".join(said)
    return "".join(said)


def serve(address: str) -> None:
    """Forks for each client until standard input is closed, which happens when the process of the tests ends.

    The folder of the address is removed then.
    """
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(megavoxel.__path__, "megavoxel."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # so that collecting garbage in a fork does not copy the memory of all modules
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin, wake], [], [])
        if wake in ready:
            wake.recv(4096)
        report_ends(clients)
        if listener in ready:
            client, _ = listener.accept()
            process = forked(client, (listener, wake, woken, *clients.values()))
            clients[process] = client
            client.sendall(b"%d\n" % process)
        if sys.stdin in ready:
            shutil.rmtree(Path(address).parent)
            return


def report_ends(clients: dict[int, socket.socket]) -> None:
    """Tells the clients of all processes that have ended their exit status."""
    while clients:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        with clients.pop(process) as client, contextlib.suppress(BrokenPipeError):
            client.sendall(b"%d\n" % (code if code >= 0 else 128 - code))


def forked(client: socket.socket, unneeded: tuple[socket.socket, ...]) -> int:
    """Starts a process for a client; its number."""
    header, files, _, _ = socket.recv_fds(client, 4, 3)
    size, message = int.from_bytes(header, "big"), b""
    while len(message) < size:
        message += client.recv(size - len(message))
    job = json.loads(message)
    process = os.fork()
    if process == 0:
        for other in unneeded:
            other.close()
        client.close()
        run(job, files)
    for file in files:
        os.close(file)
    return process


def run(job: dict, files: list[int]) -> None:
    """Runs a stage in this process, which ends with it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["names"])
    sys.modules["__main__"] = types.ModuleType("__main__")  # else processes that this one starts would import this file
    program, *sys.argv[1:] = job["words"]
    sys.argv[0] = program
    code = 1
    try:
        code = run_program(Path(program))
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_program(program: Path) -> int:
    """What one of the programs does; its exit status."""
    if program.name == "megavoxel":
        return main()
    if program.name == "snakemake":
        sys.executable = str(program.with_name("python"))  # beside which its jobs find their `megavoxel`
        return snakemake.cli.main()
    sys.argv[:] = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
