"""The newest whole checkpoint of a folder, for `--resume-newest`."""
import os
import sys
import zipfile
from pathlib import Path


def is_whole(path: Path) -> bool:
    """Return whether a file that `torch.save` wrote is complete: a zip archive whose checksums are right."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _say(line: str) -> None:
    if os.environ.get('RANK', '0') == '0':
        print(f'timm_mobilenext: {line}', file=sys.stderr)


def newest_checkpoint(folder: str) -> str | None:
    """Return the newest whole file of timm's CheckpointSaver, and say on stderr which one, and which are skipped.

    A file is not whole if the process was killed while it wrote, or the power failed. Checkpoints from within an epoch
    (`recovery-*`) do not count: timm resumes from them with the next epoch, and would skip the rest of theirs.

    Args:
        folder: Where the checkpoints of one training are.
    """
    files = [file for file in Path(folder).glob('*.pth.tar') if not file.name.startswith('recovery')]
    for file in sorted(sorted(files), key=os.path.getmtime, reverse=True):
        if is_whole(file):
            _say(f'resumes from {file}')
            return str(file)
        _say(f'skips {file}, which is damaged or incomplete')
    _say(f'starts from the beginning, no checkpoint in {folder}')
    return None
