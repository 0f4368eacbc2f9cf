"""Debian's Apptainer in a folder of its own, for tests: no package of the system changes.

    python tests/cluster/get_apptainer.py FOLDER        # prints what to evaluate in the shell

Debian has Apptainer in its unstable suite only. Its programs are unpacked beside the C library that they were linked
with, and told to load that one. Needs root, apt-get and a Debian whose apt sources work.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from megavoxel.containers.build import mirror_of_host

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PROGRAM = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0")
"""From unstable: the program and the libraries that it needs newer than those of the system."""
TOOLS = ("squashfs-tools", "liblzo2-2", "debootstrap", "patchelf")
"""From the suite of this machine: what Apptainer calls."""
LIBRARIES = "x86_64-linux-gnu"
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
"""By their numbers in the kernel: linux/capability.h."""


def get_apptainer(folder: Path) -> dict[str, str]:
    """Unpacks Apptainer into a new folder; returns the variables by which it and what it calls are found."""
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)[1]
    tools, libraries, unpacked = folder / "tools", folder / "libraries", folder / "apptainer"
    for package in _download("sid", PROGRAM, folder / "packages"):
        _run("dpkg-deb", "-x", package, unpacked if package.name.startswith("apptainer_") else libraries)
    for package in _download(codename, TOOLS, folder / "packages"):
        _run("dpkg-deb", "-x", package, tools)
    usr = unpacked / "usr"
    shutil.move(unpacked / "etc", usr / "etc")
    (usr / "var/lib/apptainer/mnt/session").mkdir(parents=True)
    # Its starter looks for its prefix a level above lib/, where Debian puts it two levels above.
    (usr / "lib/etc").symlink_to("../etc")
    (usr / "lib/var").symlink_to("../var")
    beside = _one_folder_of(libraries, usr / "lib" / LIBRARIES / "apptainer/own")
    patchelf = tools / "usr/bin/patchelf"
    for program in (usr / "bin/apptainer", usr / "lib" / LIBRARIES / "apptainer/bin/starter"):
        loader = beside / "ld-linux-x86-64.so.2"
        _run(patchelf, "--force-rpath", "--set-interpreter", loader, "--set-rpath", beside, program)
    for program in ("mksquashfs", "unsquashfs"):
        search = os.pathsep.join(str(tools / place / LIBRARIES) for place in ("lib", "usr/lib"))
        _run(patchelf, "--set-rpath", search, (tools / "usr/bin" / program).resolve())
    dropped = _take_held_capabilities(usr / "etc/apptainer")
    places = [usr / "bin", tools / "usr/bin", tools / "usr/sbin"]
    variables = {"DEBOOTSTRAP_DIR": str(tools / "usr/share/debootstrap")}
    variables |= {"APPTAINER_DROP_CAPS": ",".join(dropped)} if dropped else {}
    return variables | {"PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]])}


def _download(suite: str, packages: tuple[str, ...], folder: Path) -> list[Path]:
    """The packages of a suite, without what they depend on; signatures are checked by apt."""
    state = folder / suite
    for name in ("lists/partial", "cache/archives/partial", "parts", "packages"):
        (state / name).mkdir(parents=True)
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror_of_host()} {suite} main\n")
    places = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": state / "parts",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in places.items() for word in ("-o", f"{name}={value}")]
    _run("apt-get", "-qq", *options, "update")
    _run("apt-get", "-qq", *options, "download", *packages, folder=state / "packages")
    return sorted((state / "packages").iterdir())


def _one_folder_of(libraries: Path, folder: Path) -> Path:
    """All shared libraries below `libraries` as files of one folder."""
    folder.mkdir(parents=True)
    for path in libraries.rglob("*.so*"):
        if path.is_file() and path.parent.name == LIBRARIES:
            shutil.copy(path, folder / path.name)
    return folder


def _take_held_capabilities(settings: Path) -> list[str]:
    """Apptainer asks for all capabilities of root, and fails where root lacks one: names those that are held.

    Returns:
        The capabilities that this root lacks.
    """
    held = int(re.search(r"^CapBnd:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)[1], 16)
    names = {f"CAP_{name}": bool(held >> number & 1) for number, name in enumerate(CAPABILITIES.split())}
    if not all(names.values()):
        file = settings / "apptainer.conf"
        pattern = r"(?m)^root default capabilities = .*"
        file.write_text(re.sub(pattern, "root default capabilities = file", file.read_text()))
        users = {"users": {"root": [name for name, is_held in names.items() if is_held]}}
        (settings / "capability.json").write_text(json.dumps(users))
    return [name for name, is_held in names.items() if not is_held]


def _run(*command: object, folder: Path | None = None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}")


if __name__ == "__main__":
    for variable, setting in get_apptainer(Path(sys.argv[1]).resolve()).items():
        print(f'export {variable}="{setting}"')
