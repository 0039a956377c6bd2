"""What the pages of docs/ tell a reader to run."""
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / 'docs'


def commands(text: str, marked: bool = False) -> list[str]:
    """Return the commands of a page, one a line; with `marked` also those under a comment that says what they need."""
    found = []
    for block in re.findall(r'```sh\n(.*?)```', text, re.DOTALL):
        if marked or not block.startswith('# needs '):
            found += block.replace('\\\n', ' ').strip().splitlines()
    return [command for command in found if not command.startswith('#')]
