"""What the documents name must exist: files, and flags of the scripts they show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "ROI_ALIGN_INTEGRATION_README.md",
        "cirr_dataset/README.md",
        "models/README.md",
        "roi_align_integration/README.md",
    )
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def shown_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_two_commands_are_shown():
    commands = shown_commands()
    assert "bash roi_align_integration/tools/auto_train_with_boxes.sh --test" in commands
    assert "bash tests/run.sh" in commands


@pytest.mark.parametrize("command", shown_commands())
def test_scripts_and_flags_of_commands_exist(command):
    runner, script, *words = command.split()
    assert (ROOT / script).is_file()
    flags = [word for word in words if word.startswith("--")]
    if flags:
        answer = subprocess.run(
            [runner.replace("python", sys.executable), script, "--help"], cwd=ROOT, capture_output=True
        )
        assert answer.returncode == 0
        assert [flag for flag in flags if flag.encode() not in answer.stdout] == []
