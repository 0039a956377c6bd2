"""Write a recipe, a YAML file of options for `train.py --config`, into the current folder."""
import argparse
from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).with_name('recipes').glob('*.yaml'))}


def main(argv: list[str]) -> int:
    """Run `python -m timm_mobilenext recipe` with these arguments."""
    titles = [f'  {name:<20}{path.read_text().partition(chr(10))[0].strip("# ")}' for name, path in RECIPES.items()]
    parser = argparse.ArgumentParser(
        'python -m timm_mobilenext recipe', description=__doc__, epilog='\n'.join(['recipes:', *titles]),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=RECIPES, metavar='NAME', help='one of the recipes below')
    parser.add_argument('--output', '-o', type=Path, metavar='FILE', help='file to write (default: NAME.yaml)')
    args = parser.parse_args(argv)
    output = args.output or Path(f'{args.name}.yaml')
    try:
        with output.open('x') as file:
            file.write(RECIPES[args.name].read_text())
    except OSError as error:
        parser.error(
            f'{output} exists already: give another name with --output.' if output.exists() else str(error))
    print(f'{output} is written. Use it with: train.py --config {output}')
    return 0
