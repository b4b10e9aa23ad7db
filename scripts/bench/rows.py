"""The goals, judged from the runs: each row is a ratio of medians of the same session, with a verdict."""

import statistics

MIB = 1 << 20


class Missing(Exception):
    """Why a row has no figure."""


class Runs:
    """The runs on one filesystem."""

    def __init__(self, results, fs):
        self.fs = fs
        self.all = [run for run in results["runs"] if run["fs"] == fs]
        self.left_out = [left for left in results["left_out"] if left["fs"] == fs]

    def of(self, work, tool):
        good = [run for run in self.all if run["work"] == work and run["tool"] == tool and "error" not in run]
        if good:
            return good
        for run in self.all:
            if run["work"] == work and run["tool"] == tool:
                raise Missing(f"{tool} failed: {run['error'][:120]}")
        for left in self.left_out:
            if left["work"] == work and left["tool"] == tool:
                raise Missing(left["why"])
        raise Missing(f"{work} was not run" if tool == "transload" else f"{tool} was not run")

    def median(self, work, tool, field="wall"):
        value = (lambda run: run["user"] + run["sys"]) if field == "cpu" else (lambda run: run[field])
        runs = self.of(work, tool)
        if field == "allocated" and any(field not in run for run in runs):
            raise Missing("others use this filesystem too")
        return statistics.median(value(run) for run in runs)

    def tools(self, work):
        return list(dict.fromkeys(run["tool"] for run in self.all if run["work"] == work))

    def best(self, work, beginning=""):
        """The fastest peer whose name begins so."""
        took = {}
        for run in self.all:
            if run["work"] == work and run["peer"] and run["tool"].startswith(beginning) and "error" not in run:
                took[run["tool"]] = self.median(work, run["tool"])
        if not took:
            self.of(work, "transload")
            whys = [left["why"] for left in self.left_out if left["work"] == work and left["tool"].startswith(beginning)]
            whys += [run["error"][:120] for run in self.all if run["work"] == work and run["peer"] and run["tool"].startswith(beginning)]
            raise Missing(whys[0] if whys else f"no {beginning or 'peer'} ran")
        return min(took, key=took.get)


def bare(runs):
    return "bare loop, syncfs" if runs.fs == "disk" else "bare loop"


def faster(work, beginning=""):
    def value(runs):
        peer = runs.best(work, beginning)
        theirs, ours = runs.median(work, peer), runs.median(work, "transload")
        return theirs / ours, f"{peer} {theirs:.2f} s, transload {ours:.2f} s"
    return value


def against_bare(field):
    def value(runs):
        theirs, ours = runs.median("layers", bare(runs), field), runs.median("layers", "transload", field)
        return ours / theirs, f"{bare(runs)} {theirs:.2f} s, transload {ours:.2f} s"
    return value


def synced(runs):
    value, detail = against_bare("wall")(runs)
    try:
        peer = runs.best("layers", "containerd")
        detail += f"; {peer}, not synced, {runs.median('layers', peer) / runs.median('layers', 'transload'):.1f} times that"
    except Missing:
        pass
    if len(runs.of("layers", "transload")) < 7:
        detail += "; fewer than 7 runs"
    return value, detail


def again_plain(runs):
    first, again = runs.median("layers", "transload"), runs.median("layers again", "transload")
    detail = f"{again * 1000:.0f} ms of {first:.2f} s"
    try:
        peer = runs.best("layers again", "containerd")
        detail += f"; {peer} {runs.median('layers again', peer) / runs.median('layers', peer):.0%}"
    except Missing:
        pass
    return again / first, detail


def again_stream(runs):
    again = runs.median("docker-gz again", "transload")
    names = [name for name in runs.tools("floor") if name.startswith("outer stream")]
    took = {name: runs.median("floor", name) for name in names}
    if not took:
        raise Missing("the floors were not run")
    # The library that transload inflates with, where it was measured; else the fastest tool.
    base = next((name for name in took if name.endswith("our own decoder")), min(took, key=took.get))
    others = ", ".join(f"{name.split(': ')[1]} {seconds:.2f} s" for name, seconds in took.items())
    return again / took[base], f"again {again:.2f} s; inflating once: {others}"


def eight(runs):
    one, all_eight = runs.median("layers", "transload"), runs.median("eight", "transload")
    detail = f"one {one:.2f} s, eight {all_eight:.2f} s"
    for run in runs.of("eight", "transload"):
        once_each(run, detail)
    try:
        peer = runs.best("eight", "containerd")
        detail += f"; {peer} {runs.median('eight', peer) / runs.median('layers', peer):.2f}"
    except Missing:
        pass
    return all_eight / one, detail


def family(runs):
    distinct = runs.of("family distinct", "transload")[0]["reports"][0]["blobs"]
    for work in ("family ten", "family in one"):
        for run in runs.of(work, "transload"):
            # One manifest and configuration an image, in either form, so the counts are those of the single archive.
            new = sum(report["blobs"]["new"] for report in run["reports"])
            if new != distinct["new"]:
                return float("inf"), f"{new} blobs were written, {distinct['new']} are distinct"
    base = runs.median("family distinct", "transload")
    ten, one = runs.median("family ten", "transload"), runs.median("family in one", "transload")
    return ten / base, f"each blob once; distinct {base:.2f} s, ten processes {ten:.2f} s, one process {one:.2f} s ({one / base:.2f})"


def once_each(run, detail):
    first = run["reports"]
    trees = sum(report["trees"]["new"] for report in first)
    most = max(report["trees"]["new"] + report["trees"]["shared"] + report["trees"]["existing"] for report in first)
    if trees > most:
        raise Missing(f"{trees} trees were extracted of {most}; {detail}")


def scale(what):
    def value(runs):
        one, ten = runs.median(f"scale {what} 1", "transload"), runs.median(f"scale {what} 10", "transload")
        return ten / one, f"{one:.2f} s, {ten:.2f} s"
    return value


def peak(runs):
    single = [run for run in runs.all if run["tool"].startswith("transload") and "error" not in run and len(run["reports"]) == 1 and run["work"] != "huge"]
    if not single:
        raise Missing("transload was not run")
    most = max(single, key=lambda run: run["peak"])
    return most["peak"] / MIB, f"in {most['work']}"


def peak_huge(runs):
    run = runs.of("huge", "transload")[0]
    return run["peak"] / MIB, f"{run['wall']:.1f} s"


def allocated(runs):
    ours, floor = runs.median("layers", "transload", "allocated"), runs.median("layers", bare(runs), "allocated")
    return ours / floor / 1.01, f"{ours / 1e6:.1f} MB, the bare loop's blobs and trees {floor / 1e6:.1f} MB"


def at_least(limit, aim=None):
    return (">=", limit, aim)


def at_most(limit, unit=""):
    return ("<=", limit, unit)


ROWS = [
    ("layers-containerd", "gzip layers", "containerd, its best configuration", at_least(4, 5), faster("layers", "containerd")),
    ("layers-podman", "gzip layers", "podman load", at_least(5), faster("layers", "podman")),
    ("layers-skopeo", "gzip layers", "skopeo to containers-storage", at_least(5), faster("layers", "skopeo")),
    ("docker-gz", "docker-save .tar.gz", "best of docker, containerd, podman", at_least(4, 5), faster("docker-gz")),
    ("big", "one layer of 1.7 GB", "the best peer", at_least(4), faster("big")),
    ("many", "one layer of 140,000 small files", "the best peer", at_least(4.5), faster("many")),
    ("zstd", "zstd layers", "the best peer", at_least(4.5), faster("zstd")),
    ("bare-cpu", "gzip layers, user+sys", "the bare loop", at_most(1.00), against_bare("cpu")),
    ("bare-wall", "gzip layers, wall", "the bare loop", at_most(1.00), against_bare("wall")),
    ("disk-synced", "gzip layers, real disk, synced", "the bare loop and one syncfs", at_most(1.1), synced),
    ("again-plain", "import again, plain archive", "its own first import", at_most(0.01), again_plain),
    ("again-gz", "import again, .tar.gz", "inflating the stream once", at_most(1.1), again_stream),
    ("eight", "eight at once, the same image", "one alone", at_most(1.15), eight),
    ("family", "ten archives of one family at once", "their distinct layers, once", at_most(1.2), family),
    ("scale-files", "ten times the files", "one time", at_most(10.5), scale("files")),
    ("scale-bytes", "ten times the bytes", "one time", at_most(10.5), scale("bytes")),
    ("scale-layers", "ten times the layers", "one time", at_most(10.5), scale("layers")),
    ("peak", "peak memory, any of these", "96 MiB", at_most(96, " MiB"), peak),
    ("peak-huge", "peak memory, one layer of 10 GB", "96 MiB", at_most(96, " MiB"), peak_huge),
    ("allocated", "bytes allocated", "blobs + trees + 1 %", at_most(1), allocated),
]
DISK_ONLY = {"disk-synced"}
MEMORY_ONLY = {"bare-cpu", "bare-wall"}


def judge(results, fs):
    """The rows for one filesystem, as dicts."""
    runs = Runs(results, fs)
    judged = []
    for name, work, against, goal, value in ROWS:
        if name in (MEMORY_ONLY if fs == "disk" else DISK_ONLY):
            continue
        row = {"row": name, "fs": fs, "work": work, "against": against, "goal": goal_text(goal)}
        try:
            figure, row["detail"] = value(runs)
            row.update(value=figure, shown=shown(figure, goal), verdict=verdict(figure, goal))
        except Missing as why:
            row.update(value=None, shown="", verdict="not run", detail=str(why))
        judged.append(row)
    return judged


def goal_text(goal):
    sign, limit, more = goal
    if sign == ">=":
        return f"≥ {limit:g}×" + (f", aim {more:g}×" if more else "")
    return f"≤ {limit:.0%}" if limit < 0.1 else f"≤ {limit:g}{more}"


def shown(figure, goal):
    sign, limit, more = goal
    if sign == ">=":
        return f"{figure:.2f}×"
    return f"{figure:.2%}" if limit < 0.1 else f"{figure:.0f}{more}" if more else f"{figure:.3f}"


def verdict(figure, goal):
    sign, limit, more = goal
    if sign == ">=":
        return "not reached" if figure < limit else "reached, and the aim" if more and figure >= more else "reached"
    return "reached" if figure <= limit else "not reached"
