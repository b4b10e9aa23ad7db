"""What is run, in which order: every task gives each tool an empty store, in turn A B A B, and notes what each run cost.

A run is a plain dict in `results["runs"]`; nothing here judges it. A tool that is named by no goal takes part in the later rounds
only if its first was near the best, so that the slower ways of one peer do not take the time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import measure
import places
import tools
from corpus import LAYOUT, WORKS

NEAR_BEST = 1.25
PEERS = {
    "layers": ["containerd", "containerd + unpigz", "containerd + igzip", "podman", "skopeo", "umoci"],
    "docker-gz": ["docker", "containerd", "containerd + unpigz", "containerd + igzip", "podman"],
    "big": ["containerd", "containerd + unpigz", "containerd + igzip", "podman", "skopeo"],
    "many": ["containerd", "containerd + unpigz", "containerd + igzip", "podman", "skopeo"],
    "zstd": ["containerd", "podman", "skopeo"],
}
# They have a goal of their own.
ALWAYS = {"layers": {"podman", "skopeo", "bare loop", "bare loop, syncfs"}}
# Get the archive through a pipe where they cannot read it compressed; older ones cannot.
FED = ("containerd", "podman")
TASKS = [*WORKS, "like", "again", "eight", "family", "scale", "huge", "floors"]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Runner:
    """Carries out tasks and keeps what they gave."""

    def __init__(self, options, corpus, results, save):
        self.options, self.corpus, self.results, self.save = options, corpus, results, save
        self.measured = set()
        self.transload = tools.Transload(options.bin)
        every = [tools.Containerd(None), tools.Containerd("unpigz"), tools.Containerd("igzip"), tools.Podman(), tools.Skopeo(),
                 tools.Docker(), tools.Umoci()]
        self.peers = {tool.name: tool for tool in every}

    def place(self, kind):
        return places.Place(kind, self.options.disk, self.options.size)

    def bare(self, kind):
        return tools.BareLoop(self.options.bareloop, os.cpu_count(), kind == "disk")

    # ------------------------------------------------------------------------------------------------ one run

    def once(self, kind, work, tool, subject, number, then=()):
        """One import into an empty store; `then` are further ones into the same store, as (work, subjects)."""
        place = self.place(kind)
        with place as path:
            try:
                tool.start(path)
                self.timed(kind, work, tool, [subject], number, place)
                for more, subjects in then:
                    self.timed(kind, more, tool, subjects, number, place)
            except RuntimeError as error:
                self.note(kind, work, tool, number, {"error": str(error)})
            finally:
                tool.stop()

    def timed(self, kind, work, tool, subjects, number, place):
        """Runs the tool once for each of `subjects`, all at the same moment."""
        places.sync(place.path)
        before = place.used()
        commands = [tool.command(*(s if isinstance(s, list) else [s])) for s in subjects]
        run = measure.run(commands, tool.daemons(), tool.environment())
        if before is not None:
            run["allocated"] = max(0, place.used() - before)
        began = time.monotonic()
        places.sync(place.path)
        run["sync_after"] = time.monotonic() - began
        stdout = run.pop("stdout")
        if isinstance(tool, tools.Transload) and "error" not in run:
            run["reports"] = [shortened(json.loads(text)) for text in stdout]
        self.note(kind, work, tool, number, run)

    def note(self, kind, work, tool, number, run):
        run.update(fs=kind, work=work, tool=tool.name, peer=tool.peer, round=number)
        self.forget_former(kind, work, tool.name)
        self.results["runs"].append(run)
        if "error" in run:
            say(f"  {kind:6} {work:18} {tool.name:22} failed: {run['error']}")
        else:
            say(f"  {kind:6} {work:18} {tool.name:22} {run['wall']:7.2f} s  {run['user'] + run['sys']:7.2f} s cpu  {run['peak'] / 1e6:6.0f} MB")
        self.save()

    def forget_former(self, kind, work, name):
        """With --add: what is measured again replaces what an earlier session found."""
        key = (kind, work, name)
        if key not in self.measured:
            self.measured.add(key)
            for part in ("runs", "left_out"):
                self.results[part] = [one for one in self.results[part] if (one["fs"], one["work"], one["tool"]) != key]

    def leave_out(self, kind, work, name, why):
        left = {"fs": kind, "work": work, "tool": name, "why": why}
        if left not in self.results["left_out"]:
            self.results["left_out"].append(left)
            say(f"  {kind:6} {work:18} {name:22} not run: {why}")

    def usable(self, kind, work, candidates):
        able = []
        for tool in candidates:
            why = tool.missing()
            if why is None and tool.peer and self.options.peers is not None and not any(p in tool.name for p in self.options.peers):
                why = "left out by --peers"
            if why:
                self.leave_out(kind, work, tool.name, why)
            else:
                self.results["versions"].setdefault(tool.name, tool.about())
                able.append(tool)
        return able

    # ------------------------------------------------------------------------------------------------ tasks

    def run(self, kind):
        chosen = self.options.tasks
        for work in WORKS:
            if work in chosen:
                self.task(kind, work, lambda: self.first_import(kind, work, "again" in chosen))
        for name in ("like", "eight", "family", "scale", "huge", "floors"):
            if name in chosen:
                self.task(kind, name, lambda: getattr(self, name)(kind))

    def task(self, kind, name, work):
        """One that cannot go on does not keep the others from running."""
        try:
            work()
        except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            self.leave_out(kind, name, "all", f"{type(error).__name__}: {error}")

    def rounds(self):
        return range(1, self.options.runs + 1)

    def subject(self, work, tool):
        layout = isinstance(tool, (tools.BareLoop, tools.Umoci))
        return self.corpus.path(LAYOUT if layout else WORKS[work][1])

    def first_import(self, kind, work, again):
        candidates = [self.transload, *([self.bare(kind)] if work == "layers" else []), *(self.peers[name] for name in PEERS[work])]
        able = self.usable(kind, work, candidates)
        for number in self.rounds():
            for tool in able if number == 1 else self.still(kind, work, able):
                repeats = again and work in ("layers", "docker-gz") and (tool is self.transload or tool.name.startswith("containerd"))
                subject = self.subject(work, tool)
                then = [(f"{work} again", [subject])] if repeats else ()
                self.once(kind, work, tool, subject, number, then)
                if number == 1 and work == "docker-gz" and tool.name in FED and "error" in self.first_of(kind, work, tool):
                    able = [*able, tools.Fed(tool)]
                    self.once(kind, work, able[-1], subject, number, then)

    def first_of(self, kind, work, tool):
        return next(run for run in self.results["runs"] if (run["fs"], run["work"], run["tool"]) == (kind, work, tool.name))

    def still(self, kind, work, able):
        """Those that go on after the first round."""
        first = {r["tool"]: r["wall"] for r in self.results["runs"] if (r["fs"], r["work"], r["round"]) == (kind, work, 1) and "error" not in r}
        best = min((first[t.name] for t in able if t.peer and t.name in first), default=0)
        always = ALWAYS.get(work, set())
        return [t for t in able if t.name in first and (not t.peer or t.name in always or first[t.name] <= best * NEAR_BEST)]

    def like(self, kind):
        """Like with like: no blobs kept, as podman; nothing unpacked, as a copy into a layout."""
        pairs = [("layers", tools.Transload(self.options.bin, "--discard-blobs")), ("layers no unpack", tools.Transload(self.options.bin, "--no-unpack")),
                 ("layers no unpack", tools.Skopeo(unpack=False))]
        for number in self.rounds():
            for work, tool in pairs:
                if self.usable(kind, work, [tool]):
                    self.once(kind, work, tool, self.corpus.path(WORKS["layers"][1]), number)

    def eight(self, kind):
        subject = self.corpus.path(WORKS["layers"][1])
        best = self.best_containerd(kind)
        for number in self.rounds():
            for tool in self.usable(kind, "eight", [self.transload, *([best] if number == 1 else [])]):
                place = self.place(kind)
                with place as path:
                    try:
                        tool.start(path)
                        self.timed(kind, "eight", tool, [subject] * 8, number, place)
                    except RuntimeError as error:
                        self.note(kind, "eight", tool, number, {"error": str(error)})
                    finally:
                        tool.stop()
                if tool is self.transload and "layers" not in self.options.tasks:
                    self.once(kind, "layers", tool, subject, number)

    def best_containerd(self, kind):
        took = {}
        for run in self.results["runs"]:
            if run["fs"] == kind and run["work"] == "layers" and run["tool"].startswith("containerd") and "error" not in run:
                took[run["tool"]] = min(run["wall"], took.get(run["tool"], run["wall"]))
        return self.peers[min(took, key=took.get, default="containerd + igzip")]

    def family(self, kind):
        ten, distinct = self.corpus.family()
        for number in self.rounds():
            for work, subjects in (("family distinct", [distinct]), ("family ten", list(ten)), ("family in one", [list(ten)])):
                place = self.place(kind)
                with place as path:
                    self.transload.start(path)
                    self.timed(kind, work, self.transload, subjects, number, place)

    def scale(self, kind):
        for what in ("files", "bytes", "layers"):
            pair = self.corpus.scale(what)
            for number in self.rounds():
                for times, path in zip((1, 10), pair):
                    self.once(kind, f"scale {what} {times}", self.transload, path, number)

    def huge(self, kind):
        self.once(kind, "huge", self.transload, self.corpus.huge(), 1)

    # ------------------------------------------------------------------------------------------------ the floor by tools

    def floors(self, kind):
        """What igzip, openssl, tar and cp need for the parts of the first work, one process, one part after the other."""
        scratch = tempfile.mkdtemp(prefix="bench-compare.", dir="/dev/shm")
        try:
            plain = self.plain_layers(scratch)
            packed = self.packed_layers()
            outer = self.corpus.path(WORKS["docker-gz"][1])
            each = 'for f; do {}; done'
            parts = [
                ("inflate: igzip", "igzip", ["sh", "-c", each.format('igzip -dc <"$f"'), "sh", *packed], True),
                ("inflate: pigz", "pigz", ["pigz", "-dc", *packed], True),
                ("inflate: gzip", "gzip", ["gzip", "-dc", *packed], True),
                ("hash blobs: openssl", "openssl", ["openssl", "dgst", "-sha256", *packed], True),
                ("hash layers: openssl", "openssl", ["openssl", "dgst", "-sha256", *plain], True),
                ("extract layers: tar", "tar", ["sh", "-c", each.format('mkdir "$0/${f##*/}" && tar -xf "$f" --numeric-owner -C "$0/${f##*/}"'), "{at}", *plain], False),
                ("write blobs: cp", "cp", ["cp", *packed, "{at}"], False),
                ("outer stream: igzip", "igzip", ["sh", "-c", 'exec igzip -dc <"$1"', "sh", outer], True),
                ("outer stream: pigz", "pigz", ["pigz", "-dc", outer], True),
                ("outer stream: gzip", "gzip", ["gzip", "-dc", outer], True),
            ]
            if self.options.inflate:
                parts.append(("outer stream: our own decoder", self.options.inflate, [self.options.inflate, "--gzip", outer], True))
            for number in self.rounds():
                for name, tool, command, discard in parts:
                    self.floor(kind, name, tool, command, discard, number)
        finally:
            shutil.rmtree(scratch)

    def floor(self, kind, name, tool, command, discard, number):
        if not tools.which(tool):
            self.leave_out(kind, "floor", name, f"{tool} not installed")
            return
        with self.place(kind) as path, open(os.devnull, "wb") as nowhere:
            run = measure.run([[part.replace("{at}", path) for part in command]], output=nowhere if discard else None)
        run.pop("stdout")
        self.note(kind, "floor", Part(name), number, run)

    def packed_layers(self):
        blobs = self.corpus.path(f"{LAYOUT}/blobs")

        def read(digest):
            with open(os.path.join(blobs, digest.replace(":", "/"))) as file:
                return json.load(file)

        with open(self.corpus.path(f"{LAYOUT}/index.json")) as file:
            manifest = read(json.load(file)["manifests"][0]["digest"])
        return [os.path.join(blobs, layer["digest"].replace(":", "/")) for layer in manifest["layers"]]

    def plain_layers(self, scratch):
        subprocess.run(["tar", "-xf", self.corpus.path("debian/debian-docker.tar"), "-C", scratch], check=True)
        with open(os.path.join(scratch, "manifest.json")) as file:
            return [os.path.join(scratch, layer) for layer in json.load(file)[0]["Layers"]]


class Part:
    """A part of the floor, where a tool is noted."""

    peer = False

    def __init__(self, name):
        self.name = name


def shortened(report):
    """What of transload's report is judged or shown."""
    kept = {key: report[key] for key in ("blobs", "trees", "snapshots", "elapsed_ms", "stages_ms") if key in report}
    kept["outcomes"] = sorted({image["outcome"] for image in report["images"]})
    return kept
