"""The tools that are compared: each imports an archive into a store of its own on the place given, with its own daemon if it has one.

A tool says why it cannot run (`missing`), how to start and stop, and which command imports. Its state, temporary files included,
lies on the place; the machine's own images and settings neither help nor harm.
"""

import json
import os
import shutil
import subprocess
import time

CONTAINERD_CONFIG = """version = {version}
root = "{at}/root"
state = "{at}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.internal.v1.opt"]
[grpc]
address = "{at}/sock"
[ttrpc]
address = "{at}/ttrpc"
"""


def which(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def version(command):
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (ran.stdout or ran.stderr).strip().splitlines()
    return lines[0] if lines else None


class Tool:
    """A tool without a daemon; the others override."""

    name, needs = "", ()
    peer = True

    def missing(self):
        absent = [need for need in self.needs if not which(need)]
        return f"{', '.join(absent)} not installed" if absent else None

    def start(self, at):
        self.at = at

    def stop(self):
        pass

    def daemons(self):
        return []

    def environment(self):
        temporary = os.path.join(self.at, "tmp")
        os.makedirs(temporary, exist_ok=True)
        return {**os.environ, "TMPDIR": temporary, "HOME": self.at, "XDG_RUNTIME_DIR": self.at}

    def about(self):
        return version([which(self.needs[0]) or self.needs[0], "--version"])

    def command(self, archive):
        raise NotImplementedError


class Transload(Tool):
    """This project's program."""

    name, peer = "transload", False

    def __init__(self, program, *options):
        self.program, self.options = program, options
        if options:
            self.name = "transload " + " ".join(options)

    def about(self):
        return version([self.program, "--version"])

    def command(self, *archives):
        return [self.program, "--store", f"{self.at}/store", "--json", "--progress", "none", "import", *self.options, *archives]


class BareLoop(Tool):
    """The yardstick of the issue: a program that reads, hashes, inflates, extracts, and does nothing else. Takes a layout directory."""

    name, peer = "bare loop", False

    def __init__(self, program, threads, synced):
        self.program, self.threads, self.synced = program, threads, synced
        if synced:
            self.name = "bare loop, syncfs"

    def missing(self):
        if not self.program:
            return "no bareloop given (--bareloop PROGRAM)"
        return None if os.access(self.program, os.X_OK) else f"{self.program} is no program"

    def about(self):
        return f"{self.threads} threads"

    def command(self, layout):
        command = [self.program, layout, f"{self.at}/store", str(self.threads)]
        if self.synced:
            return ["sh", "-c", '"$@" && sync -f "$0"', self.at, *command]
        return command


class Daemon(Tool):
    """A tool whose daemon does the work. It is started before the time is taken and stopped after."""

    child = None

    def launch(self, command, probe, env):
        with open(os.path.join(self.at, "log"), "wb") as log:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        until = time.monotonic() + 30
        while subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode:
            if self.child.poll() is not None or time.monotonic() > until:
                with open(os.path.join(self.at, "log"), errors="replace") as log:
                    tail = log.read()[-400:]
                self.stop()
                raise RuntimeError(f"{command[0]} does not answer: {tail}")
            time.sleep(0.1)
        time.sleep(0.5)  # Its start is over; what it does from here on is the import.

    def daemons(self):
        return [self.child.pid] if self.child else []

    def stop(self):
        if not self.child:
            return
        self.child.terminate()
        try:
            self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child = None


class Containerd(Daemon):
    """containerd with ctr; `inflater` is what it may inflate with: nothing but itself, unpigz, or igzip.

    Newer versions look for igzip, older ones only for unpigz: for those, igzip goes by that name in a directory of its own.
    """

    needs = ("containerd", "ctr")

    def __init__(self, inflater):
        self.inflater = inflater
        self.name = "containerd" + (f" + {inflater}" if inflater else "")
        self.needs = ("containerd", "ctr", *([inflater] if inflater else []))

    def about(self):
        return version(["containerd", "--version"])

    def start(self, at):
        self.at = at
        tools = os.path.join(at, "bin")
        os.makedirs(tools)
        env = self.environment()
        env["PATH"] = env.get("PATH", "") + ":/usr/sbin:/sbin"
        for name in ("PIGZ", "IGZIP"):
            env[f"CONTAINERD_DISABLE_{name}"] = "1"
        if self.inflater == "unpigz":
            del env["CONTAINERD_DISABLE_PIGZ"]
        if self.inflater == "igzip":
            del env["CONTAINERD_DISABLE_PIGZ"], env["CONTAINERD_DISABLE_IGZIP"]
            shim = os.path.join(tools, "unpigz")
            with open(shim, "w") as file:
                file.write(f'#!/bin/sh\nexec {which("igzip")} -d -c\n')
            os.chmod(shim, 0o755)
            env["PATH"] = f"{tools}:{env['PATH']}"
        # The second version of the file's format is read by all versions that still matter.
        with open(f"{at}/config.toml", "w") as file:
            file.write(CONTAINERD_CONFIG.format(version=2, at=at))
        # The client inflates an outer gzip itself, with the same helpers.
        self.env = env
        self.launch(["containerd", "--config", f"{at}/config.toml"], self.ctr("version"), env)

    def ctr(self, *arguments):
        return ["ctr", "--address", f"{self.at}/sock", *arguments]

    def environment(self):
        return getattr(self, "env", None) or super().environment()

    def stop(self):
        super().stop()
        self.env = None

    def command(self, archive):
        return self.ctr("images", "import", archive)


class Docker(Daemon):
    """dockerd without a network, with the overlay driver."""

    name, needs = "docker", ("dockerd", "docker")

    def about(self):
        return version([which("dockerd") or "dockerd", "--version"])

    def client(self, *arguments):
        # The client that Debian's package brought; another one may be in front of it.
        program = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
        return [program, "--host", f"unix://{self.at}/sock", *arguments]

    def start(self, at):
        self.at = at
        env = self.environment()
        env["PATH"] = env.get("PATH", "") + ":/usr/sbin:/sbin"
        command = [which("dockerd"), "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2",
                   "--data-root", f"{at}/data", "--exec-root", f"{at}/exec", "--pidfile", f"{at}/pid", "--host", f"unix://{at}/sock"]
        self.launch(command, self.client("version"), env)

    def command(self, archive):
        return self.client("load", "-q", "-i", archive)


class Podman(Tool):
    """podman load; it keeps no compressed blobs."""

    name, needs = "podman", ("podman",)

    def start(self, at):
        self.at = at
        with open(f"{at}/containers.conf", "w") as file:
            file.write(f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nimage_copy_tmp_dir = "{at}/tmp"\n')
        with open(f"{at}/policy.json", "w") as file:
            file.write('{"default":[{"type":"insecureAcceptAnything"}]}')

    def environment(self):
        return {**super().environment(), "CONTAINERS_CONF": f"{self.at}/containers.conf"}

    def in_private(self, *command):
        """Whatever is configured, some versions also write a copy to /var/tmp: the place is put there, for this process alone."""
        return ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /var/tmp && exec "$@"', f"{self.at}/tmp", *command]

    def command(self, archive):
        return self.in_private("podman", "--log-level", "error", "--root", f"{self.at}/p", "--runroot", f"{self.at}/pr", "--storage-driver", "overlay", "load",
                "-q", "--signature-policy", f"{self.at}/policy.json", "-i", archive)


class Skopeo(Podman):
    """skopeo copy into containers-storage, or, for comparing without unpacking, into an OCI layout."""

    name, needs = "skopeo", ("skopeo",)

    def __init__(self, unpack=True):
        self.unpack = unpack
        if not unpack:
            self.name = "skopeo, to a layout"

    def command(self, archive):
        to = f"containers-storage:[overlay@{self.at}/s+{self.at}/sr]corpus/x:1" if self.unpack else f"oci:{self.at}/layout:x"
        return self.in_private("skopeo", "--policy", f"{self.at}/policy.json", "--tmpdir", f"{self.at}/tmp", "copy", "-q", f"oci-archive:{archive}", to)


class Umoci(Tool):
    """umoci unpack, from a layout directory into one tree: no blobs are kept, no layers either."""

    name, needs = "umoci", ("umoci",)

    def command(self, layout):
        with open(f"{layout}/index.json") as file:
            name = json.load(file)["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        return ["umoci", "unpack", "--image", f"{layout}:{name}", f"{self.at}/bundle"]


class Fed(Tool):
    """Another tool that reads from a pipe what igzip, or else gzip, inflates: for those that cannot read a compressed archive."""

    def __init__(self, tool):
        self.tool = tool
        self.inflater = "igzip" if which("igzip") else "gzip"
        self.name = f"{tool.name}, fed by {self.inflater}"

    def missing(self):
        return self.tool.missing()

    def about(self):
        return self.tool.about()

    def start(self, at):
        self.tool.start(at)

    def stop(self):
        self.tool.stop()

    def daemons(self):
        return self.tool.daemons()

    def environment(self):
        return self.tool.environment()

    def command(self, archive):
        feed = f'{self.inflater} -dc <"$0" | "$@"'
        command = self.tool.command("-")
        # podman reads its standard input when it is given no file.
        command = command[:-2] if isinstance(self.tool, Podman) else command
        return ["sh", "-c", feed, archive, *command]
