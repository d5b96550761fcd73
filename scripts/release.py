"""Make a release of the checked-out commit: version, changelog, wheel and source archive, commit and tag.

    python scripts/release.py X.Y.Z        (make release VERSION=X.Y.Z)

Nothing is pushed or uploaded; the last lines say how. Run the checks that CONTRIBUTING.md lists first.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "## [Unreleased]\n"
# A run of seconds whose checkpoint is kept: the next release must resume it (tests/training/test_previous_release.py).
STEPS = 4
SETTINGS = (
    "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", "data.dataset.num_train=8", "data.dataset.num_val=4",
    "data.dataset.size=64", "data.crop_size=64", "data.batch_size=4", "data.num_workers=0", "model.backbone.width=2",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="such as 0.2.0; the tag is v0.2.0")
    version = parser.parse_args().version
    check(version)
    write_version(version)
    move_unreleased_to_fragments(REPOSITORY / "CHANGELOG.md", REPOSITORY / "changelog.d")
    git("add", "--all")  # towncrier removes fragments that git knows
    run("towncrier", "build", "--yes", "--version", version)
    keep_checkpoint(version)
    files = build(version)
    run("twine", "check", "--strict", *files)
    git("add", "--all")
    git("commit", "--quiet", "--message", f"Release {version}")
    git("tag", "--annotate", f"v{version}", "--message", f"fcnlab {version}")
    print(f"\nCommitted and tagged v{version}. To publish:")
    print(f"  git push --follow-tags\n  twine upload {' '.join(str(file.relative_to(REPOSITORY)) for file in files)}")


def check(version: str) -> None:
    """Refuse an invalid version, one that exists, and a working tree with changes."""
    if not VERSION.fullmatch(version):
        sys.exit(f"VERSION={version} is not a valid version. It has three numbers, such as 0.2.0.")
    if git("tag", "--list", f"v{version}"):
        sys.exit(f"VERSION={version} is already released: the tag v{version} exists.")
    if changes := git("status", "--porcelain"):
        sys.exit(f"The working tree has changes. Commit them first:\n{changes}")


def write_version(version: str) -> None:
    """Write the version to version.py, which pyproject.toml reads, and to CITATION.cff."""
    module, citation = REPOSITORY / "src/fcnlab/version.py", REPOSITORY / "CITATION.cff"
    module.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', module.read_text()))
    lines = [line for line in citation.read_text().splitlines() if not line.startswith(("version:", "date-released:"))]
    lines += [f"version: {version}", f"date-released: {datetime.date.today()}"]
    citation.write_text("\n".join(lines) + "\n")


def move_unreleased_to_fragments(changelog: Path, fragments: Path) -> None:
    """Move the entries under [Unreleased] in the changelog to fragments, so that the release contains them, too."""
    before, _, rest = changelog.read_text().partition(UNRELEASED)
    section, next_release, older = rest.partition("## [")
    changelog.write_text(before + next_release + older)
    for block in section.split("### ")[1:]:
        kind, _, entries = block.partition("\n")
        (fragments / f"+unreleased.{kind.lower()}.md").write_text(f"{entries.strip()}\n")


def keep_checkpoint(version: str) -> None:
    """Train a tiny model and keep its checkpoint in tests/releases, in place of the one of the release before."""
    folder = REPOSITORY / "tests" / "releases"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as name:
        words = (f"trainer.max_steps={STEPS}", f"data.root={name}/shapes", f"hydra.run.dir={name}/run")
        run("fcnlab", "train", *SETTINGS, *words)
        shutil.copyfile(f"{name}/run/checkpoints/last.ckpt", folder / f"{version}.ckpt")


def build(version: str) -> list[Path]:
    """Build the wheel and the source archive; return their paths."""
    run("hatchling", "build", "--directory", "dist")
    return sorted((REPOSITORY / "dist").glob(f"fcnlab-{version}*"))


def run(module: str, *words: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, words)]
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        undo = "git reset --hard && git clean -d --force changelog.d tests/releases"
        sys.exit(f"The release stopped, because {module} failed. To undo its changes: {undo}")


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
