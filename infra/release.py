"""Pack what a release offers: the artifact, the template that refers to it, and the bill of materials.

The template refers to the artifact as an object of the bucket BUCKET, by the hash of its content.
"""

import argparse
import hashlib
import shutil
import zipfile
from pathlib import Path

# All functions share one artifact.
FUNCTIONS = ("Reconciler", "StateChanges", "Installer")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # a zip file knows no earlier time


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("built", type=Path, help="what `sam build` made")
    parser.add_argument("release", type=Path, help="the directory to fill")
    arguments = parser.parse_args()
    release(arguments.built, arguments.release)


def release(built: Path, target: Path) -> None:
    """Fill the directory `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    artifact = target / "reconciler.zip"
    pack(built / FUNCTIONS[0], artifact)
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    key = f"reconciler-{digest[:16]}.zip"
    artifact.rename(target / key)
    template = (built / "template.yaml").read_text()
    for function in FUNCTIONS:
        reference = f"CodeUri: {function}\n"
        if reference not in template:
            raise SystemExit(f"{built}/template.yaml has no {reference.strip()}")
        template = template.replace(reference, f"CodeUri: s3://BUCKET/{key}\n")
    (target / "template.yaml").write_text(template)
    shutil.copyfile(built / "sbom.cdx.json", target / "sbom.cdx.json")
    print(f"{target / key}: SHA-256 {digest}")


def pack(directory: Path, file: Path) -> None:
    """Zip a directory, so that the same content gives the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                member = zipfile.ZipInfo(str(path.relative_to(directory)), EARLIEST)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = 0o644 << 16
                archive.writestr(member, path.read_bytes())


if __name__ == "__main__":
    main()
