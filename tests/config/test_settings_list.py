"""Test that the list of all settings and defaults is current, so that each change of one shows in review."""

import difflib
import runpy


def test_the_list_of_settings_is_current(repository):
    script = runpy.run_path(str(repository / "scripts" / "settings.py"))
    listed, current = script["LIST"].read_text().splitlines(), script["list_settings"]()
    changes = difflib.unified_diff(listed, current, "tests/config/settings.txt", "conf/", lineterm="", n=0)
    assert listed == current, "\n".join(["Settings changed. If this is intended: make settings", *changes])
