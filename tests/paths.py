"""Where the tests find the project that they test: the checkout that they lie in, whatever is installed."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # data that a user's checkout does not have
SOURCE = REPOSITORY / "src"
TOOLS = REPOSITORY / "roi_align_integration" / "tools"
