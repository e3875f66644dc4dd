"""SECURITY.md names a test for every claim, and each test exists."""

import re

from helpers.paths import ROOT


def test_every_claim_names_a_test_that_exists():
    rows = [line for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    claims = [line for line in rows if not line.endswith("| test |")]
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(claims) >= 9
    for claim in claims:
        names = re.findall(r"`(test_\w+)`", claim.split(" | ")[-1])
        assert names and all(f"def {name}(" in tests for name in names), claim


def test_readers_find_the_page():
    for page in ("README.md", "README.zh-CN.md", "docs/README.md", "docs/how-to/share.md"):
        assert "SECURITY.md" in (ROOT / page).read_text("utf-8"), page
