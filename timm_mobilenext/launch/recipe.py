"""Write a recipe, a YAML file of options for `train.py --config`, into the current folder."""
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from timm_mobilenext.cli import Parser, clear_errors

RECIPES = {path.stem: path for path in sorted(Path(__file__).with_name('recipes').glob('*.yaml'))}


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext recipe` with these arguments."""
    titles = [f'  {name:<20}{path.read_text().partition(chr(10))[0].strip("# ")}' for name, path in RECIPES.items()]
    parser = Parser(
        'python -m timm_mobilenext recipe', description=__doc__, epilog='\n'.join(['recipes:', *titles]),
        formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=RECIPES, metavar='NAME', help='one of the recipes below')
    parser.add_argument('--output', '-o', type=Path, metavar='FILE', help='file to write (default: NAME.yaml)')
    args = parser.parse_args(argv)
    output = args.output or Path(f'{args.name}.yaml')
    with clear_errors():
        if output.exists():
            raise FileExistsError(f'{output} exists already. Give the name of a new file (--output).')
        output.write_text(RECIPES[args.name].read_text())
    print(f'{output} is written. Use it with: train.py --config {output}')
    return 0
