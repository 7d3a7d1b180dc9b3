"""Packs the folder import/ as the ZIP file that Superset imports.

    python3 pack.py dashboards.zip [postgres://bi:password@host:5432/millrace]

Without an address the database's is that of a local run with its password left out, for
which Superset asks at the import.
"""

import pathlib
import re
import sys
import zipfile

FOLDER = pathlib.Path(__file__).parent / "import"
DATABASE = pathlib.Path("databases/Millrace.yaml")


def pack(target: str, address: str | None) -> None:
    # The same files give the same bytes.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in sorted(FOLDER.rglob("*.yaml")):
            name = path.relative_to(FOLDER)
            text = path.read_text(encoding="utf-8")
            if address and name == DATABASE:
                uri = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", address)
                text, n = re.subn(r"(?m)^sqlalchemy_uri: .*$", lambda _: "sqlalchemy_uri: '" + uri.replace("'", "''") + "'", text)
                if n != 1:
                    raise ValueError(f"{name}: {n} lines with sqlalchemy_uri, want 1")
            entry = zipfile.ZipInfo(str(pathlib.PurePosixPath("millrace", *name.parts)))
            entry.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(entry, text)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    pack(*sys.argv[1:], *[None] * (3 - len(sys.argv)))
