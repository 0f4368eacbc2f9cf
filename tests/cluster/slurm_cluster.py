"""A real Slurm on this machine for tests: two nodes with pretended GPUs, with or without accounting.

Both nodes are daemons of this host that listen on ports of their own. A pretended GPU is a character device that
behaves as /dev/null: Slurm grants it, counts it and sets CUDA_VISIBLE_DEVICES, and no program can compute on it.
By hand:

    python tests/cluster/slurm_cluster.py start FOLDER [--accounting]     # prints what to evaluate in the shell
    python tests/cluster/slurm_cluster.py stop FOLDER
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("node1", "node2")
CPUS, MEMORY_MB, GPUS = 16, 64000, 4
ACCOUNT = "lab"
DAEMONS = ("slurmctld", "slurmd", "munged")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db")
COMMANDS = ("srun", "sbatch", "scancel", "squeue", "sacct", "sacctmgr", "scontrol", "sinfo", "sshare", "sstat")
PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"


def why_not() -> str | None:
    """Why no cluster can be started here; None: one can."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root: its daemons start jobs, and pretended GPUs are made by mknod"
    missing = [name for name in (*DAEMONS, *ACCOUNTING_DAEMONS) if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install --no-install-recommends {PACKAGES}"
    return None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster whose files all lie in one folder."""

    folder: Path
    """Its path must be short: that of a socket in it may have 107 bytes."""
    accounting: bool = False
    """Whether a database keeps what jobs used, so that sacct works."""
    ports: list[int] = field(default_factory=lambda: _free_ports(len(NODES) + 3))
    """Of controller, accounting, database and nodes."""

    @property
    def configuration(self) -> Path:
        """slurm.conf."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which Slurm's commands, and the jobs that they start, find this cluster.

        Snakemake's plugin takes SLURM_CONF from the environment of its inner steps, so there are wrappers that set it.
        """
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.configuration), "PATH": path}

    def run(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        environment = os.environ | self.environment
        done = subprocess.run(
            command, check=check, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.stdout

    def start(self) -> None:
        """Starts all daemons and waits until the nodes take jobs."""
        self._write_files()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        _wait("the nodes", lambda: set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == set(NODES))

    def start_controller(self) -> None:
        """Starts the controller."""
        self._daemon("slurmctld")
        _wait("the controller", lambda: "is UP" in self.run("scontrol", "ping", check=False))

    def stop_controller(self) -> None:
        """Ends the controller; jobs go on."""
        _end(self.folder / "run" / "slurmctld.pid")

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._daemon("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node, as a fault of the machine would; jobs that it has started go on."""
        os.kill(int((self.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons that this cluster started, and no others."""
        if (self.folder / "run" / "slurmctld.pid").exists():
            self.run("scancel", "--user=root", check=False)
            _wait("the jobs", lambda: not self.run("squeue", "-h", check=False).strip(), seconds=20, needed=False)
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadb", "munged"):
            _end(self.folder / "run" / f"{name}.pid")

    def _daemon(self, *command: str) -> None:
        subprocess.run(command, check=True, env=os.environ | {"SLURM_CONF": str(self.configuration)})

    def _write_files(self) -> None:
        for name in ("etc", "log", "run", "controller", "devices", "bin", *NODES):
            (self.folder / name).mkdir(parents=True)
        self.configuration.write_text(_slurm_conf(self))
        gpus = [f"NodeName={node} Name=gpu Type=pretended File={_gpu(self, node, f'[0-{GPUS - 1}]')}" for node in NODES]
        (self.folder / "etc" / "gres.conf").write_text("\n".join(gpus) + "\n")
        for node in NODES:
            for number in range(GPUS):
                # A plain file in its place is granted, but gives jobs no CUDA_VISIBLE_DEVICES.
                os.mknod(_gpu(self, node, number), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for command in COMMANDS:
            wrapper = self.folder / "bin" / command
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.configuration} exec {shutil.which(command)} "$@"\n')
            wrapper.chmod(0o755)

    def _start_munge(self) -> None:
        key = self.folder / "etc" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {
            "key-file": key,
            "socket": _socket(self),
            "pid-file": self.folder / "run" / "munged.pid",
            "log-file": self.folder / "log" / "munged.log",
            "seed-file": self.folder / "run" / "munged.seed",
        }
        self._daemon("munged", "--force", *(f"--{name}={path}" for name, path in files.items()))

    def _start_accounting(self) -> None:
        _start_database(self)
        settings = self.folder / "etc" / "slurmdbd.conf"
        settings.write_text(_slurmdbd_conf(self))
        settings.chmod(0o600)
        self._daemon("slurmdbd")
        _wait("accounting", lambda: "rror" not in self.run("sacctmgr", "-n", "list", "cluster", check=False))
        self.run("sacctmgr", "-i", "add", "cluster", "tests")
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, "cluster=tests")
        self.run("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}", "cluster=tests")


def _slurm_conf(cluster: Cluster) -> str:
    """slurm.conf for daemons without cgroups, with quick reactions."""
    folder, host = cluster.folder, socket.gethostname().split(".")[0]
    controller, accounting, _, *ports = cluster.ports
    lines = [
        "ClusterName=tests",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={_socket(cluster)}",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"StateSaveLocation={folder}/controller",
        f"SlurmdPidFile={folder}/run/slurmd-%n.pid",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        f"SlurmdSpoolDir={folder}/%n",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "MpiDefault=none",
        "SwitchType=switch/none",
        # Jobs beyond their memory are killed by what they were seen to use, since there are no cgroups.
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "JobAcctGatherParams=OverMemoryKill",
        # Nodes with more than this machine has.
        "SlurmdParameters=config_overrides",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "GresTypes=gpu",
        "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000",
        "KillWait=20",
        "OverTimeLimit=0",
        "InactiveLimit=0",
        "UnkillableStepTimeout=180",
        "ReturnToService=2",
        # Tests ask for jobs at the end of a study, which on a busy machine ends many minutes after its first job.
        "MinJobAge=3600",
    ]
    if cluster.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={accounting}",
            f"AccountingStoragePass={_socket(cluster)}",
            "AccountingStorageTRES=gres/gpu",
            "AccountingStorageEnforce=associations",
            "AccountingStoreFlags=job_comment",
        ]
    for node, port in zip(NODES, ports, strict=True):
        cpus = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1"
        place = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
        lines.append(f"NodeName={node} {place} {cpus} RealMemory={MEMORY_MB} Gres=gpu:pretended:{GPUS}")
    for partition in ("cpu Default=YES", "gpu"):
        lines.append(f"PartitionName={partition} Nodes={','.join(NODES)} DefaultTime=10 DefMemPerCPU=500 State=UP")
    return "\n".join(lines) + "\n"


def _slurmdbd_conf(cluster: Cluster) -> str:
    _, accounting, database, *_ = cluster.ports
    values = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={_socket(cluster)}",
        "DbdHost": socket.gethostname().split(".")[0],
        "DbdAddr": "127.0.0.1",
        "DbdPort": accounting,
        "SlurmUser": "root",
        "LogFile": cluster.folder / "log" / "slurmdbd.log",
        "PidFile": cluster.folder / "run" / "slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": database,
        "StorageUser": "slurm",
        "StoragePass": "slurm",
        "StorageLoc": "accounting",
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _start_database(cluster: Cluster) -> None:
    """MariaDB with its files in the cluster's folder, for slurmdbd alone."""
    data, log = cluster.folder / "database", cluster.folder / "log" / "mariadb.log"
    data.mkdir()
    shutil.chown(data, "mysql", "mysql")
    common = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
    entry = data / "mariadb.sock"
    with log.open("w") as output:
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, check=True, stdout=output, stderr=output)
        place = [f"--socket={entry}", f"--port={cluster.ports[2]}", "--bind-address=127.0.0.1"]
        small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"]
        server = subprocess.Popen(
            ["mariadbd", *common, *place, *small], stdout=output, stderr=output, start_new_session=True
        )
    (cluster.folder / "run" / "mariadb.pid").write_text(str(server.pid))
    orders = "create database accounting; create user slurm@'127.0.0.1' identified by 'slurm'; "
    orders += "create user slurm@localhost identified by 'slurm'; "
    orders += "grant all on accounting.* to slurm@'127.0.0.1'; grant all on accounting.* to slurm@localhost;"
    client = ["mariadb", "--no-defaults", f"--socket={entry}", "-e"]
    _wait(
        "the database", lambda: subprocess.run([*client, "select 1"], capture_output=True, check=False).returncode == 0
    )
    subprocess.run([*client, orders], check=True)


def _socket(cluster: Cluster) -> Path:
    return cluster.folder / "run" / "munge.sock"


def _gpu(cluster: Cluster, node: str, number: object) -> Path:
    return cluster.folder / "devices" / f"{node}-gpu{number}"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(what: str, ready: Callable[[], bool], *, seconds: float = 60, needed: bool = True) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            if needed:
                raise TimeoutError(f"{what}: not ready after {seconds} s")
            return
        time.sleep(0.1)


def _end(pid_file: Path) -> None:
    """Ends the daemon of a pid file and waits for its end."""
    if not pid_file.exists() or not pid_file.read_text().strip():
        return
    pid = int(pid_file.read_text())

    for order in (signal.SIGTERM, signal.SIGKILL):
        if _runs(pid):
            os.kill(pid, order)
            _wait(pid_file.stem, lambda: not _runs(pid), seconds=10, needed=False)
    pid_file.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended; one whose parent has not asked for its end counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> int:
    """Starts or stops a cluster from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("folder", type=Path, help="of the cluster; start makes it, stop removes it")
    parser.add_argument("--accounting", action="store_true", help="with a database, so that sacct works")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    cluster = Cluster(folder=arguments.folder.resolve(), accounting=arguments.accounting)
    if arguments.action == "stop":
        cluster.stop()
        shutil.rmtree(cluster.folder)
        return 0
    cluster.start()
    print("".join(f'export {name}="{value}"\n' for name, value in cluster.environment.items()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
