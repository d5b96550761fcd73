"""Test the steps of make release that need no tools."""

import runpy

import pytest

CHANGELOG = """\
# Changelog

<!-- releases -->

## [Unreleased]

### Added
- One, in
  two lines.
- Two.

### Fixed
- Three.
"""
OLDER = """
## [0.1.0] - 2026-01-01

### Added
- Zero.
"""


@pytest.fixture(scope="module")
def release(repository):
    return runpy.run_path(str(repository / "scripts" / "release.py"))


@pytest.mark.parametrize("older", ["", OLDER], ids=["first release", "later release"])
def test_unreleased_entries_become_fragments(release, older, tmp_path):
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(CHANGELOG + older)
    release["move_unreleased_to_fragments"](changelog, tmp_path)
    assert (tmp_path / "+unreleased.added.md").read_text() == "- One, in\n  two lines.\n- Two.\n"
    assert (tmp_path / "+unreleased.fixed.md").read_text() == "- Three.\n"
    assert changelog.read_text() == "# Changelog\n\n<!-- releases -->\n\n" + older.lstrip()


def test_a_changelog_without_unreleased_entries_stays_as_it_is(release, tmp_path):
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n{OLDER}")
    release["move_unreleased_to_fragments"](changelog, tmp_path)
    assert changelog.read_text() == f"# Changelog\n{OLDER}" and [*tmp_path.iterdir()] == [changelog]


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", ""])
def test_a_version_has_three_numbers(release, version):
    with pytest.raises(SystemExit, match="is not a valid version"):
        release["check"](version)
