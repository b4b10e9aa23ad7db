#!/usr/bin/env python3
"""Puts layers together into image archives, and generates layers, for scripts/make-corpus.

usage: assemble.py docker  OUT NAME LAYER.tar...
       assemble.py oci     OUT NAME LAYER... [-- NAME LAYER...]...
       assemble.py big     OUT BYTES LAYER.tar...
       assemble.py modules OUT FILES SEED [PREFIX]
       assemble.py describe DIR

It streams: no archive is held in memory. Layers named .gz or .zst are decompressed once, for their DiffIDs.
"""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile

MOMENT = 1717243200
CHUNK = 1 << 20


def sha256(stream):
    state = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        state.update(chunk)
    return state.hexdigest()


def opened(path):
    """The uncompressed tar of a layer, with what compressed it."""
    tool = {".gz": ["gzip", "-dc"], ".zst": ["zstd", "-dcq"]}.get(os.path.splitext(path)[1])
    return subprocess.Popen([*tool, path], stdout=subprocess.PIPE).stdout if tool else open(path, "rb")


def diff_id(path):
    with opened(path) as stream:
        return sha256(stream)


def config(diff_ids):
    return json.dumps({
        "created": "2024-06-01T12:00:00Z", "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/usr/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + d for d in diff_ids]},
        "history": [{"created": "2024-06-01T12:00:00Z", "created_by": "corpus"} for _ in diff_ids],
    }).encode()


class Archive:
    """A tar in which no member is written twice."""

    def __init__(self, path):
        self.tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)
        self.names = set()

    def member(self, name, size, stream):
        if name in self.names:
            return
        self.names.add(name)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = size, MOMENT, 0o644
        self.tar.addfile(entry, stream)

    def data(self, name, data):
        self.member(name, len(data), io.BytesIO(data))

    def file(self, name, path):
        with open(path, "rb") as stream:
            self.member(name, os.path.getsize(path), stream)


def docker(out, name, *layers):
    archive = Archive(out)
    diff_ids = [diff_id(layer) for layer in layers]
    for digest, layer in zip(diff_ids, layers):
        archive.file(f"{digest}.tar", layer)
    raw = config(diff_ids)
    config_name = hashlib.sha256(raw).hexdigest() + ".json"
    archive.data(config_name, raw)
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [d + ".tar" for d in diff_ids]}]
    archive.data("manifest.json", json.dumps(manifest).encode())
    archive.tar.close()


def oci(out, *arguments):
    archive = Archive(out)
    known = {}
    index = []
    images, current = [], []
    for argument in [*arguments, "--"]:
        if argument != "--":
            current.append(argument)
        elif current:
            images.append((current[0], current[1:]))
            current = []

    def blob(raw):
        digest = hashlib.sha256(raw).hexdigest()
        archive.data(f"blobs/sha256/{digest}", raw)
        return {"digest": "sha256:" + digest, "size": len(raw)}

    for name, layers in images:
        for layer in layers:
            if layer not in known:
                with open(layer, "rb") as stream:
                    digest = sha256(stream)
                kind = {".gz": "+gzip", ".zst": "+zstd"}.get(os.path.splitext(layer)[1], "")
                archive.file(f"blobs/sha256/{digest}", layer)
                known[layer] = (diff_id(layer), {"mediaType": f"application/vnd.oci.image.layer.v1.tar{kind}",
                                                 "digest": "sha256:" + digest, "size": os.path.getsize(layer)})
        described = {"mediaType": "application/vnd.oci.image.config.v1+json", **blob(config([known[la][0] for la in layers]))}
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described,
                    "layers": [known[la][1] for la in layers]}
        index.append({"mediaType": "application/vnd.oci.image.manifest.v1+json", **blob(json.dumps(manifest).encode()),
                      "platform": {"architecture": "amd64", "os": "linux"},
                      "annotations": {"org.opencontainers.image.ref.name": name}})
    archive.data("index.json", json.dumps({"schemaVersion": 2, "manifests": index}).encode())
    archive.data("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    archive.tar.close()


def big(out, size, *layers):
    """Members of the layers under copy-<n>/ until the layer has its size; whiteouts stay out."""
    target = tarfile.open(out, "w", format=tarfile.PAX_FORMAT)
    copy = 0
    while True:
        for layer in layers:
            with tarfile.open(layer) as source:
                for member in source:
                    if "/.wh." in member.name or not (member.isfile() or member.isdir() or member.issym()):
                        continue
                    member.name = f"copy-{copy}/{member.name}"
                    member.pax_headers.pop("path", None)
                    target.addfile(member, source.extractfile(member) if member.isfile() else None)
                    if target.offset >= int(size):
                        target.close()
                        return
        copy += 1


WORDS = ("module exports require return function const value options error callback stream buffer length index object string "
         "array result config default path name type handler context state request response parse format promise async await "
         "resolve reject undefined null prototype constructor event emit listener timeout queue cache token node child parent "
         "render update component props element attribute style class selector query document window global process").split()


def modules(out, files, seed, prefix="app/node_modules"):
    """A layer like node_modules: scoped packages, nested dependencies, sources, maps and readmes of a few kB."""
    dice = random.Random(int(seed))
    target = tarfile.open(out, "w", format=tarfile.USTAR_FORMAT)
    remaining = int(files)
    made = set()

    def directory(path):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in made:
                made.add(name)
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, MOMENT
                target.addfile(entry)

    # Sentences are made once and drawn from: as fast as copying, and about as repetitive as sources are.
    def sentence():
        words = [dice.choice(WORDS) + (str(dice.randrange(1000)) if dice.random() < 0.25 else "") for _ in range(dice.randrange(3, 12))]
        return "  " + dice.choice(["const {} = {};", "if ({}) return {};", "{}({});", "// {} {}"]).format(words[0], " ".join(words[1:])) + "\n"

    def identifier():
        return f"{dice.choice(WORDS)}{dice.getrandbits(64):x}"

    sentences = [sentence() for _ in range(20000)]

    def text():
        size = int(min(60000, dice.lognormvariate(7.6, 1.1)))
        lines = []
        while size > 0:
            # Unlike real code only in meaning: every few lines something that was not seen before.
            line = dice.choice(sentences) if dice.random() < 0.7 else f"  var {identifier()} = {identifier()};\n"
            lines.append(line)
            size -= len(line)
        return "".join(lines).encode()

    package = 0
    while remaining:
        name = f"{dice.choice(WORDS)}-{dice.choice(WORDS)}-{package}"
        scope = f"@{dice.choice(WORDS)}/" if dice.random() < 0.3 else ""
        root = f"{prefix}/{scope}{name}"
        if dice.random() < 0.2:
            root += f"/node_modules/{dice.choice(WORDS)}-{package}"
        package += 1
        for number in range(min(remaining, 1 + int(dice.lognormvariate(2.6, 1)))):
            where = dice.choice(["", "/lib", "/lib/internal", "/dist", "/dist/esm", "/test"])
            directory(root + where)
            suffix = dice.choice([".js", ".js", ".js", ".d.ts", ".js.map", ".json", ".md"])
            data = text()
            entry = tarfile.TarInfo(f"{root}{where}/{dice.choice(WORDS)}-{number}{suffix}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, MOMENT + number
            target.addfile(entry, io.BytesIO(data))
            remaining -= 1
    target.close()


def describe(directory):
    for base, directories, names in os.walk(directory):
        directories.sort()
        if "oci-layout" in names:
            directories.clear()
            size = sum(os.path.getsize(os.path.join(b, n)) for b, _, ns in os.walk(base) for n in ns)
            print(f"{base}/  {size / 1e6:.0f} MB")
            continue
        for name in sorted(names):
            path = os.path.join(base, name)
            print(f"{path}  {os.path.getsize(path) / 1e6:.0f} MB")


if __name__ == "__main__":
    {"docker": docker, "oci": oci, "big": big, "modules": modules, "describe": describe}[sys.argv[1]](*sys.argv[2:])
