"""Filesystems to import into: a tmpfs, an ext4 on a loop device whose file lies in memory, or a directory of a real disk.

Each measurement gets an empty one. What a tool left mounted is unmounted when the place is given back; nothing is done to
any other filesystem.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile

LIBC = ctypes.CDLL(None, use_errno=True)


def sync(path):
    """Waits until the filesystem of `path` has written everything."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if LIBC.syncfs(handle):
            raise OSError(ctypes.get_errno(), f"cannot sync {path}")
    finally:
        os.close(handle)


def mounts_below(path):
    """Mount points at or below `path`, the innermost first."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split()[1].encode().decode("unicode_escape") for line in table]
    return sorted((p for p in points if p == path or p.startswith(path + "/")), key=len, reverse=True)


def unmount(path):
    for point in mounts_below(path):
        if subprocess.run(["umount", point], stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)
    if mounts_below(path):
        raise OSError(f"cannot unmount {path}")


class Place:
    """`with place as path:` an empty directory on a filesystem of that kind; gone afterwards."""

    def __init__(self, kind, disk, size):
        self.kind, self.disk, self.size = kind, disk, size
        self.path = self.image = None

    def __enter__(self):
        if self.kind == "disk":
            self.path = tempfile.mkdtemp(prefix="bench-compare.", dir=self.disk)
            sync(self.path)
            return self.path
        # Short, because sockets of daemons lie below.
        self.path = tempfile.mkdtemp(prefix="bc.", dir="/tmp")
        try:
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self.path

    def mount(self):
        if self.kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size},mode=755", "bench-compare", self.path], check=True)
            return
        handle, self.image = tempfile.mkstemp(prefix="bench-compare.", suffix=".ext4", dir="/dev/shm")
        os.close(handle)
        os.truncate(self.image, self.size)
        # Not lazy: a kernel thread that prepares inodes would run beside the first measurement.
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-i", "8192", "-E", options, self.image], check=True)
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)
        shutil.rmtree(os.path.join(self.path, "lost+found"))
        sync(self.path)

    def used(self):
        """Bytes allocated on the filesystem; None on a disk that others use too."""
        if self.kind == "disk":
            return None
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def __exit__(self, *_):
        if self.path:
            unmount(self.path)
            if self.kind == "disk":
                parent = os.path.dirname(self.path)
                shutil.rmtree(self.path, ignore_errors=True)
                sync(parent)
            else:
                os.rmdir(self.path)
        if self.image:
            os.unlink(self.image)
        self.path = self.image = None
