"""The formats that a model is exported to, and what timmx, the exporter, lacks.

timmx writes every file. The rest is here, a class for each format: int8 for ONNX Runtime and OpenVINO, weights in 8 or
16 bits for ONNX, metadata in the file, and the file as a function of an image, to check it and to time it.
"""
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

Run = Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence converters."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, 'w') as nothing, contextlib.ExitStack() as stack:
        for descriptor in (1, 2):  # native code and child processes write to these
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(nothing.fileno(), descriptor)
        stack.enter_context(contextlib.redirect_stdout(nothing))
        stack.enter_context(contextlib.redirect_stderr(nothing))
        yield


class Runtime:
    """A format, how a file of it is made, and the runtime that runs it.

    Its methods take `folder`, a converted folder; `plain`, the plain file that was made of it; `path`, the file to
    write or to load; `input_size`, (C, H, W) of an image; `images` as the network takes them, (N, C, H, W).

    Attributes:
        name: Name of the format, as timmx spells it.
        suffixes: Ends of the names of its files. The runtime is given the first file.
        modules: What has to be installed to make and run it.
        int8_modules: What has to be installed too for files that compute in int8.
        extra: Extra of this package that brings them.
        precision: What a plain file computes in.
        precisions: Those of other files, of weights_int8, weights_fp16 and int8 -> timmx's options for it.
        options: timmx's options for a plain file.
    """

    name: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    int8_modules: tuple[str, ...] = ()
    extra = 'export'
    precision = 'fp32'
    precisions: ClassVar[dict[str, dict[str, Any]]] = {}
    options: ClassVar[dict[str, Any]] = {}

    def missing(self, int8: bool = False) -> list[str]:
        """Return the modules that are not installed."""
        wanted = ('timmx', *self.modules, *(self.int8_modules if int8 else ()))
        return [module for module in wanted if importlib.util.find_spec(module) is None]

    def files(self, path: Path) -> list[Path]:
        """Return a file, and the second one if the format has two."""
        stem = str(path).removesuffix(self.suffixes[0])
        return [Path(stem + suffix) for suffix in self.suffixes]

    def size(self, path: Path) -> int:
        """Return the bytes of a file, with that of the second one."""
        return sum(
            part.stat().st_size for file in self.files(path) for part in (file, *file.rglob('*')) if part.is_file())

    def convert(self, folder: Path, path: Path, input_size: Sequence[int], **options: Any) -> None:
        """Write a file with timmx, with its options in place of those for a plain file.

        Raises:
            RuntimeError: If timmx cannot.
        """
        from timmx import TimmxError
        from timmx.api import export_model

        try:
            with quiet():
                export_model(
                    self.name, f'local-dir:{folder}', pretrained=True, output=path, input_size=tuple(input_size),
                    **{'verify': False, **self.options, **options})
        except TimmxError as error:
            raise RuntimeError(f'{self.name}: {error}') from error

    def store_weights(self, folder: Path, plain: Path, path: Path, input_size: Sequence[int], precision: str) -> None:
        """Write a file whose weights are stored in fewer bits: weights_int8 or weights_fp16."""
        self.convert(folder, path, input_size, **self.precisions[precision])

    def quantize(self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool = True) -> None:
        """Write a file that computes in int8, weights and activations, calibrated on images.

        With `per_channel` the weights have a scale for each output channel, without it one for all.
        """
        with tempfile.TemporaryDirectory() as work:
            data = Path(work) / 'images.pt'
            torch.save(torch.from_numpy(images), data)
            options = self.precisions['int8'] | dict(calibration_data=data, per_channel=per_channel)
            self.convert(folder, path, images.shape[1:], **options)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write metadata into the file, if viewers of its format show them."""

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Return the file as a function of one image, see `load` below."""
        raise NotImplementedError


class Onnx(Runtime):
    """ONNX, for ONNX Runtime."""

    name = 'onnx'
    suffixes = ('.onnx',)
    modules = ('onnx', 'onnxscript', 'onnxslim', 'onnxruntime')
    precisions: ClassVar = {'weights_int8': {}, 'weights_fp16': {}, 'int8': {}}

    def store_weights(self, folder: Path, plain: Path, path: Path, input_size: Sequence[int], precision: str) -> None:
        """Store the weights of convs and linear layers in fp16, or in int8 with a scale for each output channel.

        The arithmetic stays in fp32: Cast or DequantizeLinear widens them once, when the file is loaded.
        """
        import onnx
        from onnx import helper, numpy_helper

        model = onnx.load(plain)
        graph = model.graph
        for tensor in [t for t in graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT]:
            weight = numpy_helper.to_array(tensor)  # (out, in, ...), Gemm's too: PyTorch's linear is transposed there
            name = f'{tensor.name}_{precision}'
            if precision == 'weights_fp16':
                stored = {name: weight.astype(np.float16)}
                node = helper.make_node('Cast', [*stored], [tensor.name], to=onnx.TensorProto.FLOAT)
            else:
                largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
                scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
                rounded = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
                stored = {name: rounded, f'{name}_scale': scale}
                node = helper.make_node('DequantizeLinear', [*stored], [tensor.name], axis=0)
            graph.initializer.remove(tensor)
            graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
            graph.node.insert(0, node)
        onnx.save(model, path)

    def quantize(self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool = True) -> None:
        """Quantize with ONNX Runtime: QDQ, with activations in uint8, which the processors' instructions take."""
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            inputs = ({'input': image[None]} for image in images)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.inputs, None)

        with tempfile.TemporaryDirectory() as work:
            prepared = Path(work) / plain.name
            with quiet():
                quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, path, Reader(), per_channel=per_channel, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write `metadata_props`."""
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it with ONNX Runtime on the processor."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda image: session.run(None, {'input': image})[0]


class OpenVino(Runtime):
    """OpenVINO's IR."""

    name = 'openvino'
    suffixes = ('.xml', '.bin')
    modules = ('openvino',)
    int8_modules = ('nncf',)
    precisions: ClassVar = {'weights_fp16': dict(fp16=True), 'int8': {}}
    options: ClassVar = dict(fp16=False)

    def quantize(self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool = True) -> None:
        """Quantize with NNCF."""
        with quiet():
            import nncf
            import openvino
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

            quantized = nncf.quantize(
                openvino.Core().read_model(plain), nncf.Dataset(images[:, None]), subset_size=len(images),
                advanced_parameters=AdvancedQuantizationParameters(
                    weights_quantization_params=QuantizationParameters(per_channel=per_channel)))
            openvino.save_model(quantized, path, compress_to_fp16=False)

    def load(self, path: Path, threads: int | None = None, precision: str = 'f32') -> Run:
        """Run it on the processor in f32, or in bf16, which OpenVINO by itself chooses on processors that have it."""
        import openvino

        options = {'INFERENCE_PRECISION_HINT': precision, **({'INFERENCE_NUM_THREADS': threads} if threads else {})}
        compiled = openvino.Core().compile_model(path, 'CPU', options)
        return lambda image: compiled(image)[0]


class ExecuTorch(Runtime):
    """ExecuTorch's program, for XNNPACK."""

    name = 'executorch'
    suffixes = ('.pte',)
    modules = ('executorch',)
    precisions: ClassVar = {'int8': dict(mode='int8')}

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it. Its pool has a thread for each core of the machine, whatever `threads` says."""
        with quiet():
            from executorch.runtime import Runtime as Engine

            method = Engine.get().load_program(path).load_method('forward')
        return lambda image: np.asarray(method.execute([torch.from_numpy(image)])[0])


class LiteRt(Runtime):
    """LiteRT's (TensorFlow Lite's) flatbuffer."""

    name = 'litert'
    suffixes = ('.tflite',)
    modules = ('litert_torch', 'ai_edge_litert')
    extra = 'litert'
    precisions: ClassVar = {'weights_fp16': dict(mode='fp16'), 'int8': dict(mode='int8')}

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it with XNNPACK, on one thread by default. An int8 file takes integers and answers in them."""
        from ai_edge_litert.interpreter import Interpreter

        with quiet():
            runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
        (name, given), = runner.get_input_details().items()
        answer, = runner.get_output_details().values()
        (scale, zero), (answer_scale, answer_zero) = given['quantization'], answer['quantization']  # 0 in fp32

        def run(image: np.ndarray) -> np.ndarray:
            if scale:
                image = np.clip(np.rint(image / scale + zero), -128, 127).astype(np.int8)
            logits, = runner(**{name: image}).values()
            return (logits.astype(np.float32) - answer_zero) * answer_scale if answer_scale else logits
        return run


class CoreMl(Runtime):
    """Core ML's package, in fp16, which is Core ML's default."""

    name = 'coreml'
    suffixes = ('.mlpackage',)
    modules = ('coremltools',)
    precision = 'fp16'
    precisions: ClassVar = {'weights_int8': dict(int8=True)}

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write its `userDefined` metadata."""
        from coremltools.models.utils import load_spec, save_spec

        model_file, = path.rglob('*.mlmodel')
        spec = load_spec(str(model_file))
        spec.description.metadata.userDefined.update(metadata)
        save_spec(spec, str(model_file))

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it, on macOS."""
        if sys.platform != 'darwin':
            raise NotImplementedError('Core ML runs only on macOS and iOS')
        import coremltools

        model = coremltools.models.MLModel(str(path))
        return lambda image: model.predict({'input': image})['output']


class Ncnn(Runtime):
    """ncnn's two files."""

    name = 'ncnn'
    suffixes = ('.ncnn.param', '.ncnn.bin')
    modules = ('ncnn', 'pnnx')
    precisions: ClassVar = {'weights_fp16': dict(fp16=True)}
    options: ClassVar = dict(fp16=False)

    def convert(self, folder: Path, path: Path, input_size: Sequence[int], **options: Any) -> None:
        """Let timmx write a folder, and keep the two files in it that ncnn loads."""
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            super().convert(folder, Path(work), input_size, **options)
            for written, file in zip(self.files(Path(work, f'model{self.suffixes[0]}')), self.files(path), strict=True):
                os.replace(written, file)

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in fp32."""
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads or os.cpu_count() or 1
        for half in ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage'):
            setattr(net.opt, half, False)
        param, weights = self.files(path)
        if net.load_param(str(param)) or net.load_model(str(weights)):
            raise RuntimeError(f'ncnn cannot load {param} and {weights.name} beside it.')

        def run(image: np.ndarray) -> np.ndarray:
            extractor = net.create_extractor()
            extractor.input('in0', ncnn.Mat(np.ascontiguousarray(image[0])))
            return np.array(extractor.extract('out0')[1])[None]
        return run


def _in_torch(module: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    return torch.inference_mode()(lambda image: module(torch.from_numpy(image)).numpy())


class TorchExport(Runtime):
    """PyTorch's exported program."""

    name = 'torch-export'
    suffixes = ('.pt2',)

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in PyTorch, on the threads of the process."""
        return _in_torch(torch.export.load(path).module())


class TorchScript(Runtime):
    """TorchScript, which PyTorch has deprecated and phones still load."""

    name = 'torchscript'
    suffixes = ('.pt',)

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in PyTorch, on the threads of the process."""
        return _in_torch(torch.jit.load(path))


RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (
    Onnx(), OpenVino(), ExecuTorch(), LiteRt(), CoreMl(), Ncnn(), TorchExport(), TorchScript())}


def load(path: str | Path, threads: int | None = None) -> Run:
    """Return an exported file as a function of one image to its logits.

    Args:
        path: The file; of two, the one that its runtime is given.
        threads: How many threads it may use, None for the runtime's choice. ExecuTorch always uses all, PyTorch those
            of the process.

    Returns:
        A function of an array (1, C, H, W), float32, as `timm.data.create_transform` makes images, to logits (1, N).

    Raises:
        ValueError: If the name of the file ends like that of no format.
        NotImplementedError: If files of the format do not run on this system.
    """
    for runtime in RUNTIMES.values():
        if str(path).endswith(runtime.suffixes[0]):
            return runtime.load(Path(path), threads)
    suffixes = ', '.join(runtime.suffixes[0] for runtime in RUNTIMES.values())
    raise ValueError(f'{path} has an unknown format: expected a file that ends in one of {suffixes}.')
