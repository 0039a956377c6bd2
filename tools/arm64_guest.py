"""Run files on the emulated ARM machine, without PyTorch: python arm64_guest.py IMAGES.npy LOGITS.npz FILE...

Where a file cannot be run, its error takes the place of its logits.
"""
import sys
from collections.abc import Callable

import numpy as np


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a file as a function of an image (1, C, H, W) to its logits."""
    if path.endswith('.onnx'):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        return lambda image: session.run(None, {'input': image})[0]
    if path.endswith('.xml'):
        import openvino

        options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
        compiled = openvino.Core().compile_model(path, 'CPU', options)
        return lambda image: compiled(image)[0]
    return load_tflite(path) if path.endswith('.tflite') else load_ncnn(path)


def load_tflite(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a file of LiteRT as such a function."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=1).get_signature_runner()
    (name, given), = runner.get_input_details().items()
    answer, = runner.get_output_details().values()

    def run(image: np.ndarray) -> np.ndarray:
        if given['dtype'] == np.int8:
            scale, zero = given['quantization']
            image = np.clip(np.rint(image / scale + zero), -128, 127).astype(np.int8)
        logits, = runner(**{name: image}).values()
        scale, zero = answer['quantization'] if answer['dtype'] == np.int8 else (1, 0)
        return (logits.astype(np.float32) - zero) * scale
    return run


def load_ncnn(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the two files of ncnn as such a function, in fp32."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    for half in ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage'):
        setattr(net.opt, half, False)
    if net.load_param(path) or net.load_model(path.removesuffix('.param') + '.bin'):
        raise RuntimeError(f'ncnn does not load {path}')

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input('in0', ncnn.Mat(image[0]))
        return np.array(extractor.extract('out0')[1])
    return run


images, output, *paths = sys.argv[1:]
images, answers = np.load(images), []
for path in paths:
    try:
        run = load(path)
        answers.append([run(image[None]).flatten() for image in images])
    except Exception as error:
        answers.append(str(error).strip().splitlines()[-1])
np.savez(output, *answers)
