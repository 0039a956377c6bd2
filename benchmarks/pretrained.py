"""Time `create_model(pretrained=True)` with warm caches beside timm's mobilenetv2_100; measure the memory of `convert`.

    python benchmarks/pretrained.py [--rounds 21]

The weights come from the Hub of tests/loopback.py, so that no network is needed. Each round takes one sample of each,
so that what else the machine does slows all alike. Medians are compared.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tests'))

# This runs in a process of its own, whose environment says where the Hub and the caches are.
MEASURE = """
import dataclasses, json, logging, sys, time
import timm, torch
import timm_mobilenext
from timm_mobilenext.weights import authors
logging.disable(logging.WARNING)
url, blob, pin, rounds = *sys.argv[1:4], int(sys.argv[4])
source = dataclasses.replace(authors.SOURCES['mobilenext_100_id050'], url=url, blob=blob)
authors.SOURCES['mobilenext_100_id050'] = source
timm.models._registry._model_pretrained_cfgs['mobilenext_100_id050.in1k'].url = url
timm.models._registry._model_pretrained_cfgs['mobilenext_100.in1k'].hf_hub_id = pin
names = {'mobilenetv2_100': 'mobilenetv2_100.ra_in1k', 'mobilenext_100': 'mobilenext_100',
         "mobilenext_100_id050, authors' file": 'mobilenext_100_id050'}
times = {name: [] for name in names}
for i in range(rounds + 1):
    for name, model in names.items():
        start = time.perf_counter()
        timm.create_model(model, pretrained=True)
        if i:  # the first fills the caches
            times[name].append(time.perf_counter() - start)
print(json.dumps(times))
"""

# The arguments of `convert`; without any, only the imports are measured.
CONVERT = """
import re, sys, time
from timm_mobilenext.weights.convert import main
start = time.perf_counter()
if sys.argv[1:]:
    main(sys.argv[1:])
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the medians, their ratios to mobilenetv2_100, and the peak memory of `convert`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=21, help='samples of each (default: %(default)s)')
    rounds = parser.parse_args().rounds
    os.environ['HF_HUB_OFFLINE'] = '1'  # for this process, which writes what the Hub serves

    import official
    import timm
    from loopback import Loopback

    import timm_mobilenext  # noqa: F401 - registers the models
    from timm_mobilenext.weights.download import git_blob_id
    print(f'timm {timm.__version__}, {platform.machine()}, {os.cpu_count()} cores, {rounds} rounds')
    with tempfile.TemporaryDirectory() as work, Loopback(Path(work)) as server:
        for name, owner in (('mobilenetv2_100.ra_in1k', 'timm'), ('mobilenext_100.in1k', 'timm-mobilenext')):
            timm.models.save_for_hf(
                timm.create_model(name.split('.')[0]), server.hub / owner / name, safe_serialization=True)
        authors = server.files / 'half' / 'model_best.pth.tar'
        authors.parent.mkdir()
        official.save_checkpoint(authors, 'mobilenext_100_id050', ema=False)
        env = os.environ | {'HF_ENDPOINT': server.url, 'HF_HOME': f'{work}/hf', 'TORCH_HOME': f'{work}/torch'}
        env.pop('HF_HUB_OFFLINE')
        pin = f'timm-mobilenext/mobilenext_100.in1k@{server.revision("timm-mobilenext/mobilenext_100.in1k")}'
        args = [f'{server.url}/files/half/model_best.pth.tar', git_blob_id(authors), pin, str(rounds)]
        for title, extra in (('with the Hub asked', {}), ('HF_HUB_OFFLINE=1', {'HF_HUB_OFFLINE': '1'})):
            times = json.loads(subprocess.run(
                [sys.executable, '-c', MEASURE, *args], env=env | extra, check=True, stdout=subprocess.PIPE).stdout)
            base = statistics.median(times['mobilenetv2_100'])
            for name, samples in times.items():
                median = statistics.median(samples)
                low, *_, high = statistics.quantiles(samples, n=4)
                print(f'{title:<20}{name:<38}{median * 1e3:7.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})'
                      f'{median / base:7.2f}x')
        largest = Path(work) / 'largest.pth.tar'
        official.save_checkpoint(largest, 'mobilenext_l_ghost', ema=True)
        convert = [largest, '--model', 'mobilenext_l_ghost', '--output', f'{work}/converted']
        (imports, _), (peak, seconds) = (
            map(float, subprocess.run(
                [sys.executable, '-c', CONVERT, *args], check=True, stdout=subprocess.PIPE, text=True,
            ).stdout.split()[-2:])
            for args in ([], convert))
        print(f'convert, {largest.stat().st_size / 1e6:.0f} MB: peak {peak:.0f} MiB, {imports:.0f} MiB of it imports, '
              f'{seconds:.1f} s')


if __name__ == '__main__':
    main()
