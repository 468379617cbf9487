"""The notebook of examples runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "convert" / "examples.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return everything that the cells of a notebook print."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_stored_outputs_name_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert not re.findall(r'"/(?:home|root|tmp|Users|work)/', text)
    assert '"output_type": "error"' not in text
    assert "verified" in printed(nbformat.read(NOTEBOOK, 4))


@pytest.mark.long  # trains for minutes
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_the_notebook_converts_classifies_trains_evaluates_and_would_push(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
    text = printed(notebook)
    assert "verified · 18 comparisons" in text
    accuracies = [float(percent) for percent in re.findall(r"top-1 ([0-9.]+)%", text)]
    assert len(accuracies) == 3
    assert len(set(accuracies)) == 1
    assert accuracies[0] > 90
    assert re.findall(r"same first class: (\d+) of (\d+)", text) == [("359", "359")] * 2
    assert "model.safetensors\n" in text
