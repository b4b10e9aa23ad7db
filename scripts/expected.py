#!/usr/bin/env python3
"""Writes what skopeo sees in every archive of a directory, as JSON on stdout.

usage: expected.py DIR POLICY.json

Tests compare an import with this, so that they need no skopeo to say what is right. Nothing here interprets an
image itself, with one exception that says so: skopeo does not read archives older than docker 1.10. Compressed
archives are decompressed for skopeo first, because Debian's 1.9.3 fails on them.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile

PLATFORM = ["--override-os", "linux", "--override-arch", "amd64"]
DECOMPRESS = {".gz": ["gzip", "-dc"], ".zst": ["zstd", "-dcq"], ".xz": ["xz", "-dc"], ".bz2": ["bzip2", "-dc"]}


def main(directory, policy):
    archives = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith((".json", ".md")) or "-wrong" in name:
            continue
        path = os.path.join(directory, name)
        decompress = DECOMPRESS.get(os.path.splitext(name)[1])
        if decompress:
            with tempfile.NamedTemporaryFile(suffix=".tar") as plain:
                subprocess.run([*decompress, path], stdout=plain, check=True)
                archives[name] = describe(plain.name, policy)
        else:
            archives[name] = describe(path, policy)
    version = subprocess.run(["skopeo", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    json.dump({"by": version, "platform": "linux/amd64", "archives": archives}, sys.stdout, indent=1, sort_keys=True)
    print()


def describe(path, policy):
    def skopeo(*args):
        done = subprocess.run(["skopeo", "--policy", policy, *args], capture_output=True)
        if done.returncode != 0:
            sys.exit(f"expected.py: skopeo {' '.join(args)}: {done.stderr.decode()}")
        return done.stdout

    members = read_json_members(path)
    if "index.json" in members:
        transport = "oci" if os.path.isdir(path) else "oci-archive"
        images = [oci_image(skopeo, f"{transport}:{path}", entry) for entry in members["index.json"]["manifests"]]
        return {"kind": "oci", "images": images}
    if "manifest.json" in members:
        images = []
        for position, entry in enumerate(members["manifest.json"]):
            reference = f"docker-archive:{path}:@{position}"
            raw = skopeo("inspect", "--config", "--raw", reference)
            config = json.loads(raw)
            images.append({
                "names": entry["RepoTags"] or [],
                "config": digest(raw),
                "platform": f"{config['os']}/{config['architecture']}",
                "diff_ids": config["rootfs"]["diff_ids"],
            })
        return {"kind": "docker", "images": images}
    return {"kind": "docker-legacy", "images": [legacy_image(path, members)]}


def oci_image(skopeo, base, entry):
    annotations = entry.get("annotations", {})
    name = annotations.get("org.opencontainers.image.ref.name")
    reference = f"{base}:{name}" if name else base
    raw = skopeo("inspect", "--raw", reference)
    assert digest(raw) == entry["digest"], reference
    top = json.loads(raw)
    skipped = []
    manifest = digest(raw)
    if "manifests" in top:
        chosen = [m for m in top["manifests"] if m["platform"]["architecture"] == "amd64"]
        skipped = [m["digest"] for m in top["manifests"] if m["platform"]["architecture"] != "amd64"]
        assert len(chosen) == 1, reference
        manifest = chosen[0]["digest"]
    config_raw = skopeo("inspect", *PLATFORM, "--config", "--raw", reference)
    config = json.loads(config_raw)
    seen = json.loads(skopeo("inspect", *PLATFORM, reference))
    return {
        "names": [annotations.get("io.containerd.image.name", name)] if name else [],
        "ref": name,
        "target": entry["digest"],
        "manifest": manifest,
        "skipped": skipped,
        "config": digest(config_raw),
        "platform": f"{config['os']}/{config['architecture']}",
        "layers": seen["Layers"],
        "diff_ids": config["rootfs"]["diff_ids"],
    }


def legacy_image(path, members):
    """Layers from the named one up through its parents; the config is made by whoever loads it."""
    (repository, tags), = members["repositories"].items()
    (tag, layer), = tags.items()
    diff_ids = []
    with tarfile.open(path) as archive:
        while layer:
            diff_ids.insert(0, digest(archive.extractfile(f"{layer}/layer.tar").read()))
            layer = json.load(archive.extractfile(f"{layer}/json")).get("parent")
    return {"names": [f"{repository}:{tag}"], "platform": "linux/amd64", "diff_ids": diff_ids}


def read_json_members(path):
    wanted = ("index.json", "manifest.json", "repositories")
    if os.path.isdir(path):
        return {n: json.load(open(os.path.join(path, n))) for n in wanted if os.path.exists(os.path.join(path, n))}
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in wanted:
                found[name] = json.load(archive.extractfile(member))
    return found


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
