"""What the commands share: their parser, their errors and the folder they write. Imports neither timm nor PyTorch."""
import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SOURCES = 'model name with weights, checkpoint, converted folder or hf-hub:OWNER/NAME'


class ModelKwargs(argparse.Action):
    """timm's parser of KEY=VALUE, with an error that names what it cannot read."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *args: Any) -> None:
        """Set the option to a dict of the values."""
        from timm.utils import ParseKwargs
        try:
            ParseKwargs(self.option_strings, self.dest)(parser, namespace, values)
        except (TypeError, ValueError):
            parser.error(f'{self.option_strings[0]} {" ".join(values)}: expected KEY=VALUE, e.g. width_mult=1.1.')


class Parser(argparse.ArgumentParser):
    """The parser of argparse, with errors in the form of all commands and hints for two common slips."""

    def error(self, message: str) -> NoReturn:
        """End the command with one line and the usage."""
        if 'required: source' in message.lower():  # an option that takes several values took it
            message += '. It comes first, before the options'
        elif message.startswith('unrecognized arguments'):
            message += '. The architecture of a checkpoint is given with --model'
        self.exit(2, f'error: {message.rstrip(".")}.\n{self.format_usage()}')


def parser(command: str, description: str | None) -> Parser:
    """Return the parser of a command, with the options that all commands on models have."""
    parser = Parser(
        f'python -m timm_mobilenext {command}', f'python -m timm_mobilenext {command} SOURCE --output DIR [OPTIONS]',
        description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', metavar='NAME', help='architecture of a checkpoint that does not name its own')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ModelKwargs, metavar='KEY=VALUE',
                        help='arguments of the model, such as width_mult=1.1')
    parser.add_argument('--label-names', metavar='FILE', help='text file with the names of the classes, one per line')
    parser.add_argument('--output', '-o', required=True, metavar='DIR', help='new folder for the result (required)')
    return parser


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the source of a command that converts weights, and the other options on weights."""
    parser.add_argument('source', metavar='SOURCE', help=SOURCES)
    parser.add_argument('--license', metavar='ID', help=(
        'licence of the weights, as the Hub spells it, e.g. apache-2.0 (default: the one that the source names)'))
    parser.add_argument('--cache-dir', metavar='DIR', help='folder of the caches')


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `parser` and `add_weights` as the arguments of `weights.convert.convert`."""
    options = {key: vars(args)[key] for key in ('source', 'output', 'model', 'model_kwargs', 'license', 'cache_dir')}
    return {**options, 'label_names': read_label_names(args.label_names)}


def read_label_names(path: str | None) -> list[str] | None:
    """Return the names of the classes of a text file, one per line; None for no file."""
    lines = Path(path).read_text(encoding='utf-8').split('\n') if path else []
    return [line.strip() for line in lines if line.strip()] or None


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End a command with one message instead of a traceback."""
    from huggingface_hub.errors import HTTPError
    try:
        yield
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, HTTPError) as error:  # TypeError: --model-kwargs
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('error: interrupted')


@contextlib.contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `output` at the end; after an error nothing is left of it.

    Raises:
        FileExistsError: If `output` exists already.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f'{output} exists already. Give the name of a new folder (--output).')
    existing = next(parent for parent in output.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix='.timm-mobilenext-', dir=existing) as work:
        folder = Path(work) / output.name
        folder.mkdir()
        yield folder
        output.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, output)
