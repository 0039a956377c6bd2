"""The formats that a model is exported to, and what their exporter, timmx, leaves to others.

timmx writes every file. What it lacks is here, a class for each format: int8 for ONNX Runtime and OpenVINO, weights in
8 or 16 bits for ONNX, what a file says of itself, and a file as a function of images, to check it and to time it.
"""
import contextlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
import torch
from tqdm import tqdm

Run = Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def quiet() -> Iterator[TextIO]:
    """Keep what converters print to themselves; the end of it is a note to the exception where one fails.

    Yields:
        Standard error as it was, for a progress bar.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile('w+', errors='replace') as log, contextlib.ExitStack() as stack:
        for descriptor in (1, 2):  # also of what is no Python, and of child processes
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(log.fileno(), descriptor)
        terminal = stack.enter_context(open(saved, 'w', closefd=False))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        try:
            yield terminal
        except Exception as error:
            log.flush()
            log.seek(0)
            if hasattr(error, 'add_note'):  # since Python 3.11, which all converters need
                error.add_note(log.read()[-2000:])
            raise


class Runtime:
    """A format, the runtime that runs it, and how a file of it is made.

    Attributes:
        name: Name of the format, as timmx has it.
        suffixes: Ends of the names of its files, the first of the one that is loaded.
        modules: What has to be installed to make and run it.
        extra: Extra of this package that brings them.
        precision: In which a file computes, unless it was quantized.
        int8_modules: What has to be installed besides to quantize it, None where it has no int8 with calibration.
        weights: Precisions that the weights alone can be stored in -> timmx's options for it.
        options: timmx's options for a plain file.
    """

    name: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    extra = 'export'
    precision = 'fp32'
    int8_modules: tuple[str, ...] | None = None
    weights: ClassVar[dict[str, dict[str, Any]]] = {}
    options: ClassVar[dict[str, Any]] = {}

    def missing(self, int8: bool = False) -> list[str]:
        """Return the modules that are not installed."""
        wanted = ('timmx', *self.modules, *(self.int8_modules or () if int8 else ()))
        return [module for module in wanted if importlib.util.find_spec(module) is None]

    def convert(self, folder: Path, path: Path, input_size: Sequence[int], **options: Any) -> None:
        """Have timmx write a file.

        Args:
            folder: A converted folder: the model.
            path: The file.
            input_size: (C, H, W) of an image.
            **options: timmx's, instead of those for a plain file.

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
        """Write a file whose weights are stored in fewer bits.

        Args:
            folder: A converted folder: the model.
            plain: The file without that.
            path: The file.
            input_size: (C, H, W) of an image.
            precision: One of `weights`.
        """
        self.convert(folder, path, input_size, **self.weights[precision])

    def quantize(
            self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool) -> None:
        """Write a file that computes in int8 (weights and activations), calibrated on images.

        Args:
            folder: A converted folder: the model.
            plain: The file that computes in float.
            path: The file.
            images: Images as the network takes them, (N, C, H, W).
            per_channel: A scale for each output channel of the weights, not one for all.
        """
        with tempfile.TemporaryDirectory() as work:
            data = Path(work) / 'images.pt'
            torch.save(torch.from_numpy(images), data)
            self.convert(
                folder, path, images.shape[1:], mode='int8', calibration_data=data, per_channel=per_channel)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write into a file what it is; a format without a place for that leaves it to the JSON beside it."""

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Return a file as a function of one image, (1, C, H, W), to its logits, (1, N).

        Args:
            path: The file.
            threads: How many it may use, None for the runtime's choice.
        """
        raise NotImplementedError(f'{self.name} cannot be run here')


class Onnx(Runtime):
    """ONNX, for ONNX Runtime."""

    name = 'onnx'
    suffixes = ('.onnx',)
    modules = ('onnx', 'onnxscript', 'onnxslim', 'onnxruntime')
    int8_modules = ()
    weights: ClassVar = {'int8': {}, 'fp16': {}}

    def store_weights(self, folder: Path, plain: Path, path: Path, input_size: Sequence[int], precision: str) -> None:
        """Store the weights of convolutions and linear layers in int8 per output channel, or in fp16.

        The arithmetic stays in fp32: DequantizeLinear or Cast widens them, once, when the file is loaded.
        """
        import onnx
        from onnx import helper, numpy_helper

        model = onnx.load(plain)
        graph = model.graph
        nodes = []
        for tensor in [t for t in graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT]:
            weight = numpy_helper.to_array(tensor)  # (out, in, ...), of Gemm too: PyTorch's linear is transposed there
            graph.initializer.remove(tensor)
            name = f'{tensor.name}_{precision}'
            if precision == 'fp16':
                graph.initializer.append(numpy_helper.from_array(weight.astype(np.float16), name))
                nodes.append(helper.make_node('Cast', [name], [tensor.name], to=onnx.TensorProto.FLOAT))
                continue
            largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
            scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
            rounded = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
            graph.initializer.extend([
                numpy_helper.from_array(rounded, name), numpy_helper.from_array(scale, f'{name}_scale')])
            nodes.append(helper.make_node('DequantizeLinear', [name, f'{name}_scale'], [tensor.name], axis=0))
        for node in reversed(nodes):
            graph.node.insert(0, node)
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def quantize(
            self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool) -> None:
        """Quantize with ONNX Runtime: QDQ, activations in uint8, as the processors' instructions have it."""
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.images = iter(tqdm(images, desc=f'{path.name}: calibrating', unit='image', leave=False))

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(({'input': image[None]} for image in self.images), None)

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
    weights: ClassVar = {'fp16': {}}
    options: ClassVar = dict(fp16=False)

    def quantize(
            self, folder: Path, plain: Path, path: Path, images: np.ndarray, per_channel: bool) -> None:
        """Quantize with NNCF."""
        with quiet() as terminal, tqdm(
                desc=f'{path.name}: calibrating', unit='image', leave=False, file=terminal) as progress:
            import nncf
            import openvino
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

            def one(image: np.ndarray) -> np.ndarray:  # NNCF takes the images more than once
                progress.update()
                return image[None]

            data = nncf.Dataset(images, one)
            quantized = nncf.quantize(
                openvino.Core().read_model(plain), data, subset_size=len(images),
                advanced_parameters=AdvancedQuantizationParameters(
                    weights_quantization_params=QuantizationParameters(per_channel=per_channel)))
            openvino.save_model(quantized, path, compress_to_fp16=False)

    def convert(self, folder: Path, path: Path, input_size: Sequence[int], **options: Any) -> None:
        """Have timmx write it, and work out what depends on the size of the images alone: TensorFlow's padding."""
        super().convert(folder, path, input_size, **options)
        import openvino.passes

        manager = openvino.passes.Manager()
        manager.register_pass(openvino.passes.ConstantFolding())
        with self._rewritten(path) as model:
            manager.run_passes(model)

    def store_weights(self, folder: Path, plain: Path, path: Path, input_size: Sequence[int], precision: str) -> None:
        """Store them in fp16, which OpenVINO widens; timmx would before the sizes are worked out, which widens them."""
        import openvino

        openvino.save_model(openvino.Core().read_model(plain), path, compress_to_fp16=True)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write `rt_info`, where OpenVINO's own tools have what a model is."""
        with self._rewritten(path) as model:
            for key, value in metadata.items():
                model.set_rt_info(value, ['model_info', key])

    @contextlib.contextmanager
    def _rewritten(self, path: Path) -> Iterator[Any]:
        import openvino

        model = openvino.Core().read_model(path)
        yield model
        with tempfile.TemporaryDirectory(dir=path.parent) as work:  # the weights are still read from the old file
            openvino.save_model(model, Path(work) / path.name, compress_to_fp16=False)
            del model
            for suffix in self.suffixes:
                os.replace((Path(work) / path.name).with_suffix(suffix), path.with_suffix(suffix))

    def load(self, path: Path, threads: int | None = None, precision: str = 'f32') -> Run:
        """Run it on the processor.

        Args:
            path: The file.
            threads: How many it may use.
            precision: f32, or bf16, which OpenVINO takes by itself where the processor has it: 0.1 off then.
        """
        import openvino

        options = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
        options |= {'INFERENCE_NUM_THREADS': str(threads)} if threads else {}
        compiled = openvino.Core().compile_model(path, 'CPU', options)
        return lambda image: compiled(image)[0]


class ExecuTorch(Runtime):
    """ExecuTorch's program, for XNNPACK."""

    name = 'executorch'
    suffixes = ('.pte',)
    modules = ('executorch',)
    int8_modules = ()

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
    int8_modules = ()
    weights: ClassVar = {'fp16': dict(mode='fp16')}

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write an entry `timm_mobilenext` of the flatbuffer's metadata, JSON."""
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        for buffer in model.buffers:
            if buffer.offset > 1:  # weights behind the flatbuffer, whose places would be others
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        entry.name, entry.buffer = 'timm_mobilenext', len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b'TFL3')
        path.write_bytes(builder.Output())

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it with XNNPACK, one thread unless told."""
        from ai_edge_litert.interpreter import Interpreter

        with quiet():
            runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
        (name, given), = runner.get_input_details().items()
        answer, = runner.get_output_details().values()

        def run(image: np.ndarray) -> np.ndarray:
            if given['dtype'] == np.int8:  # the file takes integers, and answers in them
                scale, zero = given['quantization']
                image = np.clip(np.rint(image / scale + zero), -128, 127).astype(np.int8)
            logits, = runner(**{name: image}).values()
            if answer['dtype'] == np.int8:
                scale, zero = answer['quantization']
                logits = (logits.astype(np.float32) - zero) * scale
            return logits
        return run


class CoreMl(Runtime):
    """Core ML's package, which computes in fp16 as Core ML does unless told."""

    name = 'coreml'
    suffixes = ('.mlpackage',)
    modules = ('coremltools',)
    precision = 'fp16'
    weights: ClassVar = {'int8': dict(int8=True)}

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write its `userDefined` metadata."""
        from coremltools.models.utils import load_spec, save_spec

        model_file, = path.rglob('*.mlmodel')
        spec = load_spec(str(model_file))
        spec.description.metadata.userDefined.update(metadata)
        save_spec(spec, str(model_file))

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it, on macOS."""
        if platform.system() != 'Darwin':
            raise NotImplementedError('Core ML runs on macOS and iOS alone')
        import coremltools

        model = coremltools.models.MLModel(str(path))
        return lambda image: model.predict({'input': image})['output']


class Ncnn(Runtime):
    """ncnn's two files."""

    name = 'ncnn'
    suffixes = ('.ncnn.param', '.ncnn.bin')
    modules = ('ncnn', 'pnnx')
    weights: ClassVar = {'fp16': dict(fp16=True)}
    options: ClassVar = dict(fp16=False)

    def convert(self, folder: Path, path: Path, input_size: Sequence[int], **options: Any) -> None:
        """Have timmx write a folder, and keep the two files of it that ncnn loads."""
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            super().convert(folder, Path(work), input_size, **options)
            stem = path.name.removesuffix(self.suffixes[0])
            for suffix in self.suffixes:
                os.replace(Path(work) / f'model{suffix}', path.with_name(stem + suffix))

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in fp32."""
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads or os.cpu_count() or 1
        for half in ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage'):
            setattr(net.opt, half, False)
        weights = str(path).removesuffix(self.suffixes[0]) + self.suffixes[1]
        if net.load_param(str(path)) or net.load_model(weights):
            raise RuntimeError(f'ncnn does not load {path}')

        def run(image: np.ndarray) -> np.ndarray:
            extractor = net.create_extractor()
            extractor.input('in0', ncnn.Mat(np.ascontiguousarray(image[0])))
            return np.array(extractor.extract('out0')[1])[None]
        return run


class TorchExport(Runtime):
    """PyTorch's exported program."""

    name = 'torch-export'
    suffixes = ('.pt2',)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the extra file `timm_mobilenext.json` in it."""
        program = torch.export.load(path)
        torch.export.save(program, path, extra_files={'timm_mobilenext.json': json.dumps(metadata)})

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in PyTorch, whose threads are the process's."""
        return _in_torch(torch.export.load(path).module())


class TorchScript(Runtime):
    """TorchScript, which PyTorch has deprecated and phones still load."""

    name = 'torchscript'
    suffixes = ('.pt',)

    def describe(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the extra file `timm_mobilenext.json` in it."""
        with quiet():
            torch.jit.save(torch.jit.load(path), path, _extra_files={'timm_mobilenext.json': json.dumps(metadata)})

    def load(self, path: Path, threads: int | None = None) -> Run:
        """Run it in PyTorch, whose threads are the process's."""
        with quiet():
            return _in_torch(torch.jit.load(path))


def _in_torch(module: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    @torch.inference_mode()
    def run(image: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(image)).numpy()
    return run


RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (
    Onnx(), OpenVino(), ExecuTorch(), LiteRt(), CoreMl(), Ncnn(), TorchExport(), TorchScript())}


def load(path: str | Path, threads: int | None = None) -> Run:
    """Return an exported file as a function of one image to its logits.

    Args:
        path: The file; of those with two, the one that its runtime is given.
        threads: How many threads it may use, None for the runtime's choice. ExecuTorch uses all, PyTorch those of
            the process.

    Returns:
        A function of an array (1, C, H, W), float32, as `timm.data.create_transform` makes images, to logits (1, N).

    Raises:
        ValueError: If no format has files of such a name.
        NotImplementedError: If files of the format do not run here.
    """
    for runtime in RUNTIMES.values():
        if str(path).endswith(runtime.suffixes[0]):
            return runtime.load(Path(path), threads)
    suffixes = ', '.join(runtime.suffixes[0] for runtime in RUNTIMES.values())
    raise ValueError(f'{path} is of no format that is known: expected a file that ends in one of {suffixes}.')
