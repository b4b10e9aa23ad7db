"""Shows results: as text, as Markdown, as a picture."""

import statistics
from xml.sax.saxutils import escape

from corpus import WORKS
from rows import Missing, Runs, judge

FILESYSTEMS = {"tmpfs": "tmpfs", "ext4": "fresh ext4 on a loop device in memory", "disk": "disk"}


def filesystems(results):
    return [fs for fs in FILESYSTEMS if any(run["fs"] == fs for run in results["runs"])]


def costs(results, fs):
    """One line for each work and tool: medians, with the ratio to transload's wall time."""
    runs = Runs(results, fs)
    lines = []
    for work in dict.fromkeys(run["work"] for run in runs.all):
        for tool in runs.tools(work):
            try:
                lines.append(cost(runs, work, tool))
            except Missing as why:
                lines.append([work, tool, "", str(why)[:60], *[""] * 6])
    for left in runs.left_out:
        lines.append([left["work"], left["tool"], "", f"not run: {left['why']}", *[""] * 6])
    return lines


def cost(runs, work, tool):
    mine = runs.of(work, tool)
    wall = runs.median(work, tool)
    ratio = ""
    if work != "floor" and tool != "transload":
        try:
            ratio = f"{wall / runs.median(work, 'transload'):.2f}"
        except Missing:
            pass
    spread = f"{min(run['wall'] for run in mine):.2f}–{max(run['wall'] for run in mine):.2f}"
    megabytes = [f"{statistics.median(run[key] for run in mine) / 1e6:.0f}" if all(key in run for run in mine) else ""
                 for key in ("peak", "written", "allocated")]
    after = f"{statistics.median(run['sync_after'] for run in mine):.2f}" if all("sync_after" in run for run in mine) else ""
    return [work, tool, str(len(mine)), f"{wall:.2f}" if wall >= 0.1 else f"{wall:.3f}", spread, ratio, f"{runs.median(work, tool, 'cpu'):.2f}", *megabytes, after]


COST_HEAD = ["work", "tool", "runs", "wall s", "spread", "÷ transload", "user+sys s", "peak MB", "written MB", "kept MB", "sync after s"]
ROW_HEAD = ["work", "against", "goal", "measured", "verdict", "from"]


def row_cells(row):
    return [row["work"], row["against"], row["goal"], row["shown"], row["verdict"], row["detail"]]


def machine_lines(results):
    machine = results["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; Linux {machine['kernel']}; {machine['system']}; {results['date']}"]
    return lines + [f"{tool}: {about}" for tool, about in results["versions"].items() if about]


def text(results):
    out = machine_lines(results)
    for fs in filesystems(results):
        out += ["", f"== {FILESYSTEMS[fs]}: what each run cost (medians)", ""] + aligned([COST_HEAD, *padded(costs(results, fs))])
        out += ["", f"== {FILESYSTEMS[fs]}: the goals", ""] + aligned([ROW_HEAD, *map(row_cells, judge(results, fs))])
    return "\n".join(out) + "\n"


def padded(lines):
    return [(line + [""] * len(COST_HEAD))[: len(COST_HEAD)] for line in lines]


def aligned(lines):
    widths = [max(len(line[column]) for line in lines if column < 3 or line[-1] or len(line[column]) < 24) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def markdown(results):
    out = ["Machine: " + machine_lines(results)[0] + ".", ""] + ["- " + line for line in machine_lines(results)[1:]]
    for fs in filesystems(results):
        out += ["", f"### Goals, {FILESYSTEMS[fs]}", ""] + piped([ROW_HEAD, *map(row_cells, judge(results, fs))])
        out += ["", f"### Costs, {FILESYSTEMS[fs]}", ""] + piped([COST_HEAD, *padded(costs(results, fs))])
    return "\n".join(out) + "\n"


def piped(lines):
    made = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return [made[0], "|" + "---|" * len(lines[0]), *made[1:]]


# ---------------------------------------------------------------------------------------------------- the picture

STYLE = """
  text { font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 13px; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; } .small { font-size: 11px; fill: #59636e; } .work { font-weight: 600; }
  .bar { fill: #b9c0c8; } .floor { fill: #8c959f; } .ours { fill: #bc4c00; } .axis { stroke: #d1d9e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .bar { fill: #4a525c; } .floor { fill: #6e7681; } .ours { fill: #f0883e; } .axis { stroke: #3d444d; }
  }"""
WIDTH, LABEL, RIGHT, BAR, STEP, GAP, TOP = 860, 190, 110, 16, 21, 36, 64


def picture(results):
    """Bars of wall time, one group for each work, of the first filesystem that was measured."""
    fs = filesystems(results)[0]
    runs = Runs(results, fs)
    groups = []
    for work, (name, _) in WORKS.items():
        bars = []
        for tool in runs.tools(work):
            if tool.startswith("transload "):
                continue  # With options it does something else.
            try:
                bars.append((runs.median(work, tool), tool))
            except Missing:
                pass
        ours = [seconds for seconds, tool in bars if tool == "transload"]
        if ours:
            groups.append((name, ours[0], sorted(bars)))
    longest = max((seconds for _, _, bars in groups for seconds, _ in bars), default=1)
    body, y = [], TOP
    for name, ours, bars in groups:
        body.append(f'<text class="work" x="16" y="{y}">{escape(name)}</text>')
        y += 10
        for seconds, tool in bars:
            body += bar(tool, seconds, ours, longest, y)
            y += STEP
        y += GAP - 8
    machine = results["machine"]
    foot = f"{machine['cpu']}, {machine['cores']} cores, {FILESYSTEMS[fs]}; medians; scripts/bench-compare"
    height = y + 6
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Seconds from archive to unpacked image: transload and others</title>", f"<style>{STYLE}\n</style>",
        '<text class="title" x="16" y="28">Seconds from archive to image, unpacked and ready (shorter is better)</text>',
    ]
    return "\n".join([*head, *body, f'<text class="small" x="16" y="{height - 12}">{escape(foot)}</text>', "</svg>"]) + "\n"


def bar(tool, seconds, ours, longest, y):
    length = max(2, (WIDTH - LABEL - RIGHT) * seconds / longest)
    kind = "ours" if tool == "transload" else "floor" if tool.startswith("bare loop") else "bar"
    note = f"{seconds:.1f} s" + ("" if tool == "transload" else f"  {seconds / ours:.1f}×")
    return [f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(tool)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{escape(note)}</text>']
