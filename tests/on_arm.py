"""Check golden answers of the reference code, folding and the export to ONNX, on ARM (test_package_on_arm)."""
import runpy
import sys
import tempfile

import official
import timm
import torch

from timm_mobilenext.mobilenext import checkpoint_filter_fn

torch.set_num_threads(1)
images = official.images()
for name in sys.argv[1:]:
    model, case = timm.create_model(name).eval(), official.case(name)
    model.load_state_dict(checkpoint_filter_fn(official.state_dict(case.split('/')[0]), model))
    folded = timm.utils.reparameterize_model(model)
    with torch.inference_mode():
        logits = model(images)
        difference = (folded(images[:1]) - logits[:1]).abs().max() / logits.std()
    print(name, official.golden_error(logits, case), difference.item())
with tempfile.TemporaryDirectory() as work:
    timm.models.save_for_hf(model, f'{work}/network', safe_serialization=True)
    sys.argv = ['timm_mobilenext', *f'export {work}/network --format onnx --img-size 64 --output {work}/files'.split()]
    runpy.run_module('timm_mobilenext', run_name='__main__')
