"""The notebooks run from the first cell to the last."""

import nbformat
import pytest
from nbclient import NotebookClient

from testbed import shop
from tests.conftest import AS_OF

FOLDER = shop.ROOT / "infra" / "training" / "notebooks"


@pytest.mark.parametrize(("name", "pictures"), [("eda", 2), ("training", 4), ("inference", 2)])
def test_runs(name: str, pictures: int, warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", warehouse)
    monkeypatch.setenv("AS_OF", AS_OF)
    monkeypatch.setenv("TRIALS", "2")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert all(not c.get("outputs") for c in book.cells), "it is kept without outputs"
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [o for c in book.cells for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == pictures
