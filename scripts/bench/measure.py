"""Runs commands and says what they cost, together with the daemon that does the work for them.

Processor time of a command is what `wait4` says, that of a daemon the difference of /proc/PID/stat over the daemon and its
descendants, ended ones included. Peak memory is the sum of the high-water marks (VmHWM) of all processes at the moment where that
sum was largest, looked at every tenth of a second. Bytes written are those of all write calls, pipes and sockets included.
"""

import os
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def tree(pid):
    """The process and its descendants."""
    found = [pid]
    for one in found:
        try:
            threads = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        for thread in threads:
            found.extend(int(child) for child in read(f"/proc/{one}/task/{thread}/children").split())
    return found


def field(text, name):
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def written(pid):
    return field(read(f"/proc/{pid}/io"), "wchar")


def spent(pid):
    """Seconds of user and system time of one process and of its children that have ended."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 15:
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[13])) / TICK, (int(fields[12]) + int(fields[14])) / TICK


class Daemons:
    """What the daemons have used since this was made."""

    def __init__(self, pids):
        self.pids = pids
        for pid in self.all():
            try:
                with open(f"/proc/{pid}/clear_refs", "w") as file:
                    file.write("5")  # Forgets the high-water mark of starting up.
            except OSError:
                pass
        self.before = self.now()

    def all(self):
        return [one for pid in self.pids for one in tree(pid)]

    def now(self):
        every = self.all()
        times = [spent(pid) for pid in every]
        return sum(u for u, _ in times), sum(s for _, s in times), sum(written(pid) for pid in every)

    def since(self):
        return tuple(max(0, now - then) for now, then in zip(self.now(), self.before))


class Peak(threading.Thread):
    """Watches memory until stopped."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.pids, self.bytes, self.over = pids, 0, threading.Event()

    def run(self):
        pause = 0.004
        while not self.over.wait(pause):
            # Often at first, for what ends at once; then seldom enough not to matter.
            pause = min(pause * 1.5, 0.1)
            every = [one for pid in self.pids for one in tree(pid)]
            total = sum(field(read(f"/proc/{pid}/status"), "VmHWM") for pid in every) * 1024
            self.bytes = max(self.bytes, total)

    def stop(self):
        self.over.set()
        self.join()
        return self.bytes


def run(commands, daemons=(), env=None, output=None):
    """Runs all `commands` at once and waits for all. Gives a dict; `error` is in it if one failed, `stdout` has what each wrote."""
    outputs = [os.memfd_create(f"out{n}") for n in range(len(commands))]
    errors = os.memfd_create("err")
    behind = Daemons(daemons)
    began = time.monotonic()
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out if output is None else output, stderr=errors, env=env)
                 for command, out in zip(commands, outputs)]
    peak = Peak([*(p.pid for p in processes), *daemons])
    peak.start()
    user = system = io = 0
    failed = []
    for process in processes:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        ended = time.monotonic()
        io += written(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        user, system = user + usage.ru_utime, system + usage.ru_stime
        if process.returncode:
            failed.append(process.returncode)
    result = {"wall": ended - began, "peak": peak.stop()}
    more = behind.since()
    result.update(user=user + more[0], sys=system + more[1], written=io + more[2])
    result["stdout"] = [taken(out) for out in outputs]
    complaint = taken(errors)
    if failed:
        result["error"] = f"exit {failed[0]}: {' '.join(complaint.split())[-300:]}"
    return result


def taken(handle):
    with os.fdopen(handle, "rb") as file:
        file.seek(0)
        return file.read().decode("utf-8", "replace")
