"""The archives that are imported: those of scripts/make-corpus, and some that only comparing needs, made beside them.

`scale/` holds pairs of which one has ten times the files, bytes or layers of the other, of the same kind. `huge/` holds a layer
of 10 GB that is small on disk: its few files come again and again, the later replacing the earlier, so a store needs no 10 GB.
"""

import io
import os
import random
import shutil
import subprocess
import tarfile

WORKS = {
    "layers": ("gzip layers", "debian/debian-oci.tar"),
    "docker-gz": ("docker-save .tar.gz", "debian/debian-docker.tar.gz"),
    "big": ("one layer of 1.7 GB", "big/big-oci.tar"),
    "many": ("140,000 small files", "many/many-140k-oci.tar"),
    "zstd": ("zstd layers", "debian/debian-oci-zstd.tar"),
}
LAYOUT = "debian/debian-oci"
HUGE = "huge/huge-oci.tar"
MIB = 1 << 20


def squeeze(source, target, level):
    tool = ["pigz", f"-{level}", "-n"] if shutil.which("pigz") else ["gzip", f"-{level}", "-n"]
    with open(source, "rb") as plain, open(target, "wb") as packed:
        subprocess.run(tool, stdin=plain, stdout=packed, check=True)
    os.unlink(source)


def text(dice, size):
    words = [f"{dice.choice('abcdefgh')}{dice.getrandbits(24):x}" for _ in range(4000)]
    made = io.StringIO()
    while made.tell() < size:
        made.write(" ".join(dice.choices(words, k=4000)) + "\n")
    return made.getvalue()[:size].encode()


def layer_of_bytes(path, size, names, pool, level):
    """A layer of `size` bytes in files of 4 MiB, slices of the pool of 32 MiB; after `names` of them the names begin again."""
    dice = random.Random(7)
    tool = ["pigz", f"-{level}", "-n"] if shutil.which("pigz") else ["gzip", f"-{level}", "-n"]
    with open(path, "wb") as packed:
        press = subprocess.Popen(tool, stdin=subprocess.PIPE, stdout=packed)
        with tarfile.open(fileobj=press.stdin, mode="w|", format=tarfile.USTAR_FORMAT) as target:
            for number in range(size // (4 * MIB)):
                entry = tarfile.TarInfo(f"data/file-{number % names:05}")
                entry.size, entry.mtime = 4 * MIB, 1717243200
                start = dice.randrange(28 * MIB)
                target.addfile(entry, io.BytesIO(pool[start : start + 4 * MIB]))
        press.stdin.close()
        if press.wait():
            raise RuntimeError("cannot compress")


class Corpus:
    """Archives below a directory."""

    def __init__(self, directory, scripts):
        self.directory, self.scripts = directory, scripts

    def path(self, name):
        return os.path.join(self.directory, name)

    def ensure(self):
        """Makes the corpus if there is none."""
        if not all(os.path.exists(self.path(name)) for _, name in WORKS.values()):
            subprocess.run([os.path.join(self.scripts, "make-corpus"), self.directory], check=True)

    def family(self):
        return [self.path(f"family/family-{n:02}.tar") for n in range(1, 11)], self.path("family/family-all.tar")

    def scale(self, kind):
        """The archives for one time and for ten times."""
        pair = [self.path(f"scale/{kind}-{times}.tar") for times in (1, 10)]
        if not all(map(os.path.exists, pair)):
            os.makedirs(self.path("scale"), exist_ok=True)
            for times, path in zip((1, 10), pair):
                self.assemble(path, f"corpus/{kind}:{times}", self.scale_layers(kind, times, path))
        return pair

    def scale_layers(self, kind, times, path):
        count = 12 * times if kind == "layers" else 1
        layers = [f"{path}.{n:03}.tar.gz" for n in range(count)]
        for number, layer in enumerate(layers):
            if kind == "bytes":
                layer_of_bytes(layer, 100 * times * MIB, 1 << 30, text(random.Random(3), 32 * MIB), 6)
            else:
                files, seed = (12000 * times, 5) if kind == "files" else (600, 500 + number)
                self.run("modules", layer[:-3], str(files), str(seed), f"srv/{number}")
                squeeze(layer[:-3], layer, 6)
        return layers

    def huge(self):
        path = self.path(HUGE)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            layer = path + ".tar.gz"
            # Text that repeats within gzip's window: the archive is to be small, or it would not fit in memory.
            layer_of_bytes(layer, 10_000_000_000, 64, text(random.Random(9), 16 << 10) * 2048, 3)
            self.assemble(path, "corpus/huge:1", [layer])
        return path

    def assemble(self, path, name, layers):
        self.run("oci", path + ".part", name, *layers)
        os.rename(path + ".part", path)
        for layer in layers:
            os.unlink(layer)

    def run(self, *arguments):
        subprocess.run(["python3", os.path.join(self.scripts, "assemble.py"), *arguments], check=True)
