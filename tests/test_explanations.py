import re
from pathlib import Path

import rung
from rung.explanations import EXPLANATIONS

RAISED = re.compile(r'(?:Error|_refused)\(\s*"([a-z][a-z0-9-]+)"')


def test_every_code_that_is_raised_is_explained_and_none_else():
    source = Path(rung.__file__).parent
    raised = {code for file in source.rglob("*.py") for code in RAISED.findall(file.read_text())}
    assert raised == set(EXPLANATIONS)


def test_explanations_are_sorted_and_complete():
    assert list(EXPLANATIONS) == sorted(EXPLANATIONS)
    for code, entry in EXPLANATIONS.items():
        assert all(text.endswith(".") for text in (entry.meaning, entry.why, entry.fix)), code
        assert str(entry).startswith(entry.meaning)
