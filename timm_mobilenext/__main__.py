"""timm_mobilenext: the commands of the package, and a launcher for scripts that do not import it.

    python -m timm_mobilenext COMMAND [ARGS]       a command of the package
{commands}
    python -m timm_mobilenext SCRIPT.py [ARGS]     run a script, e.g. timm's train.py, with the models registered
    python -m timm_mobilenext -m MODULE [ARGS]     run a module the same way
    python -m timm_mobilenext --resume-newest DIR SCRIPT.py [ARGS]
                                                   add --resume FILE, the newest whole checkpoint in DIR if there is one
    torchrun --nproc-per-node N -m timm_mobilenext [--resume-newest DIR] SCRIPT.py [ARGS]
    python -m timm_mobilenext --version

A script runs as Python runs it. It imports timm itself, so a timm beside the script is the one it gets; the models are
registered when it has imported timm.models.
"""
import difflib
import importlib
import os
import sys

from timm_mobilenext import __version__
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


def _error(message: str) -> int:
    print(f'timm_mobilenext: {message}', file=sys.stderr)
    return 2


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
        return importlib.import_module(f'timm_mobilenext.{COMMANDS[args[0]][0]}').main(args[1:])
    if args[0] == '--resume-newest':
        if len(args) < 3:
            return _error('--resume-newest needs a folder and a script: --resume-newest DIR SCRIPT.py [ARGS].')
        checkpoint = newest_checkpoint(args[1])
        args = args[2:] + (['--resume', checkpoint] if checkpoint else [])
    if args[0] == '-m' and len(args) > 1:
        script.run_module(args[1], args[2:])
        return 0
    if args[0].startswith('-') or not os.path.isfile(args[0]):
        near = difflib.get_close_matches(args[0], COMMANDS, 1)
        return _error(
            f'there is no command and no file {args[0]!r}. ' + (f'Did you mean {near[0]!r}? ' if near else '')
            + f'Commands: {", ".join(COMMANDS)}; or give the path of a script, or -m MODULE (--help explains).')
    script.run_script(args[0], args[1:])
    return 0


if __name__ == '__main__':
    sys.exit(main())
