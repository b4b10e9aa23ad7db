#!/usr/bin/env python3
"""Seeds the corpora of the fuzz targets from testdata/foreign, into fuzz/corpus/, which is not under version control, or into the directory
that is named."""
import gzip, json, os, pathlib, subprocess, sys, tarfile, tempfile

here = pathlib.Path(__file__).resolve().parent
corpus = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "corpus"
foreign = here.parent / "testdata" / "foreign"
MOST = 96 << 10


def seed(target, name, data):
    if 0 < len(data) <= MOST:
        place = corpus / target
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def unpacked(data):
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def members(path):
    try:
        with tarfile.open(path) as tar:
            return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]
    except (tarfile.TarError, EOFError, OSError):
        return []


def seed_archive(path):
    data = path.read_bytes()
    seed("archive", path.name, data)
    seed("codecs", path.name, data[:MOST])
    documents = []
    for name, data in members(path):
        label = f"{path.name}-{name.replace('/', '_')[-40:]}"
        if data[:1] in (b"{", b"["):
            documents.append(data)
            seed("manifests", label, data)
            continue
        seed("codecs", label, data)
        try:
            seed("tar_layer", label, unpacked(data))
        except (OSError, EOFError):
            pass
    seed("manifests", f"{path.name}-all", b"\xff".join(documents[:9]))


def same_each_time(tar):
    """Without the number of the process, which GNU tar puts into the names of sparse files."""
    blocks = [bytearray(tar[at:at + 512]) for at in range(0, len(tar), 512)]
    for block in blocks:
        if block.startswith(b"./GNUSparseFile."):
            block[:100] = b"./GNUSparseFile.0/s".ljust(100, b"\0")
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def seed_tars():
    plain = ["--mtime=@0", "--owner=root:0", "--group=root:0", "--mode=u=rwX,go=rX"]
    headers = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        (root / "d").mkdir()
        (root / "d" / ("n" * 180)).write_text("long")
        (root / "f").write_text("file")
        os.symlink("f", root / "l")
        os.link(root / "f", root / "h")
        with open(root / "s", "wb") as sparse:
            for at in (0, 1 << 20, 3 << 20):
                sparse.seek(at)
                sparse.write(b"data")
        names = ["d", "f", "l", "h", "s"]
        forms = [["--format=v7"], ["--format=ustar"], ["--format=gnu"], ["--format=pax"], ["--format=gnu", "-S"]]
        forms += [["--format=pax", "-S", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")]
        for at, form in enumerate(forms):
            # Once without the sparse file: where there is one, the listings of two readers do not compare.
            for name, what in ((f"gnu-tar-{at}", names), (f"gnu-tar-{at}-plain", names[:-1])):
                pax = [headers] if "--format=pax" in form else []
                done = subprocess.run(["tar", "-c", *plain, *form, *pax, "-C", scratch, *what], capture_output=True)
                seed("tar_layer", name, same_each_time(done.stdout))


def seed_manifests():
    """Documents that refer to each other, in the notation of fuzz_targets/manifests.rs."""
    diff = "sha256:" + "0" * 64
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff]}})
    layer = '{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@0","size":#0}'
    descriptor = '"digest":"@1","size":#1'
    manifest = '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[%s]}'
    index = '{"schemaVersion":2,"manifests":[{"mediaType":"%s","digest":"@%d","size":#%d,"annotations":{"org.opencontainers.image.ref.name":"a:1"}}]}'
    media = "application/vnd.oci.image.%s.v1+json"
    chain = ["a layer", config, manifest % (descriptor, layer), index % (media % "manifest", 2, 2)]
    seed("manifests", "oci", "\n".join(chain).encode().replace(b"\n", b"\xff"))
    nested = chain + [index % (media % "index", 3, 3)]
    seed("manifests", "nested", "\n".join(nested).encode().replace(b"\n", b"\xff"))
    docker = '[{"Config":"@.json","RepoTags":["a:1"],"Layers":["x"]}]'
    seed("manifests", "docker", ("[" + "\n" + config + "\n" + docker).encode().replace(b"\n", b"\xff"))


def seed_words():
    digest = "sha256:" + "a" * 64
    names = ["alpine", "alpine:3.20", "ghcr.io/a/b:1", "localhost:5000/x", f"a@{digest}", f"a:1@{digest}", digest,
             "sha512:" + "b" * 128, "linux/amd64", "linux/arm/v7", "[::1]:5000/a", "a__b/c-d.e"]
    for at, name in enumerate(names):
        seed("references", str(at), name.encode())
    for at in range(24):
        seed("whiteouts", str(at), bytes([at % 3]) + bytes((at * 7 + i * (i + at)) % 251 for i in range(4 * (at + 1))))


for path in sorted(foreign.glob("*.tar*")):
    seed_archive(path)
seed_tars()
seed_manifests()
seed_words()
