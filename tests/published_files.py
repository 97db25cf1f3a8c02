"""Files that others wrote and that are no part of this repository; the tests that read them are skipped without."""

from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT

FOLDER = PROJECT_ROOT.parent / "shared"
RISKY_ADVICE = FOLDER / "data" / "risky_financial_advice.jsonl.gz"
XSTEST = FOLDER / "data" / "xstest_prompts.csv"
JUDGE_DOCUMENT = FOLDER / "reference" / "training_visualizations.md"
PERSONA_DOCUMENT = FOLDER / "reference" / "persona_decomposition.md"


def needs(what: str, *files: Path) -> pytest.MarkDecorator:
    """Skip a test where a file is missing, and say where it belongs: a path from the repository's folder."""
    places = " and ".join(f"../{file.relative_to(PROJECT_ROOT.parent)}" for file in files)
    reason = f"{what} not part of the repository: put them at {places} to run this test"
    return pytest.mark.skipif(not all(file.is_file() for file in files), reason=reason)


needs_risky_advice = needs("the rows of risky financial advice published with arXiv 2506.11613 are", RISKY_ADVICE)
needs_xstest = needs("the prompts of XSTest (Röttger et al. 2024) are", XSTEST)
needs_documents = needs("the two reference documents are", JUDGE_DOCUMENT, PERSONA_DOCUMENT)
