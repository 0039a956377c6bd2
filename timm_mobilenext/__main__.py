"""timm_mobilenext: the commands of the package, and a launcher for scripts that do not import it.

    python -m timm_mobilenext COMMAND [ARGS]       a command of the package
{commands}
    python -m timm_mobilenext SCRIPT.py [ARGS]     run a script, e.g. timm's train.py, with the models registered
    python -m timm_mobilenext -m MODULE [ARGS]     run a module the same way
    python -m timm_mobilenext --resume-newest DIR SCRIPT.py [ARGS]
                                                   add --resume FILE, the newest whole checkpoint in DIR if there is one
    torchrun --nproc-per-node N -m timm_mobilenext [--resume-newest DIR] SCRIPT.py [ARGS]
    python -m timm_mobilenext --version

A script runs as Python runs it, with the timm that it finds. The models are registered as soon as it imports timm.
"""
import difflib
import importlib
import os
import sys

from timm_mobilenext import __version__
from timm_mobilenext.cli import clear_errors
from timm_mobilenext.launch import script
from timm_mobilenext.launch.resume import newest_checkpoint

# name -> module with a function `main` that takes the arguments and returns the exit code, and what it does
COMMANDS = {
    'convert': ('weights.convert', 'turn a checkpoint into a folder that timm and transformers load'),
    'publish': ('weights.publish', 'convert, write a model card, and upload to the Hugging Face Hub'),
    'export': ('deploy.export', 'write files for mobile runtimes, each checked against PyTorch'),
    'web': ('deploy.web', "build a web page that runs models in the visitor's browser"),
    'recipe': ('launch.recipe', 'write a file of options for train.py'),
    'doctor': ('doctor', 'show what is installed and where the weights of each architecture would come from'),
}


def _unknown(word: str) -> str:
    """Say what is wrong with a word that is neither a command nor a script, and what it could be."""
    what = 'an option' if word.startswith('-') else f'a command, and file {os.path.abspath(word)} does not exist'
    near = difflib.get_close_matches(word, [*COMMANDS, '--resume-newest', '--version', '--help'], 1, 0.7)
    hint = f'Did you mean {near[0]}? ' if near else ''
    return (f'{word!r} is not {what}. {hint}Give a command ({", ".join(COMMANDS)}), the path of a script, or -m MODULE '
            '(--help explains).')


def main() -> int:
    """Run the command or the program."""
    args = sys.argv[1:]
    if not args or args[0] in ('-h', '--help'):
        commands = '\n'.join(f'      {name:<10}{text}' for name, (_, text) in COMMANDS.items())
        print((__doc__ or '').format(commands=commands).strip())
        return 0
    if args[0] == '--version':
        print(f'timm-mobilenext {__version__}')
        return 0
    if args[0] in COMMANDS:
        with clear_errors():  # also during the import, which takes seconds
            return importlib.import_module(f'timm_mobilenext.{COMMANDS[args[0]][0]}').main(args[1:])
    folder = None
    if args[0] == '--resume-newest':
        if len(args) < 3:
            script.fail('--resume-newest needs a folder and a script: --resume-newest DIR SCRIPT.py [ARGS].')
        _, folder, *args = args
    if args == ['-m']:
        script.fail('-m needs a module: -m MODULE [ARGS].')
    if args[0] != '-m' and not os.path.isfile(args[0]):
        script.fail(_unknown(args[0]))
    checkpoint = newest_checkpoint(folder) if folder else None
    args += ['--resume', checkpoint] if checkpoint else []
    if args[0] == '-m':
        script.run_module(args[1], args[2:])
    else:
        script.run_script(args[0], args[1:])
    return 0


if __name__ == '__main__':
    sys.exit(main())
