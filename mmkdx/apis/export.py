"""Exports a trained classifier for use without mmkdx, and checks it before writing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmpretrain.models import HuggingFaceClassifier, TimmClassifier
from torch import Tensor, nn

from mmkdx.files import write_file
from mmkdx.models.families import ModelFacts, describe, forward_tensor
from mmkdx.models.intercept import evaluating
from mmkdx.models.plain_classifier import PlainClassifier

#: The name of the metadata in a file of ``torch.export``.
METADATA = 'mmkdx.json'


def export_model(
    model: nn.Module,
    path: str | Path,
    format: str,
    images: Tensor,
    classes: Sequence[str] | None = None,
) -> Path:
    """Exports a classifier in the format of its library or of a runtime.

    The content is read back and compared before it is written. Weights must be equal. Logits may
    differ by 1e-4 of the largest logit.

    Args:
        model (nn.Module): The classifier.
        path (str | Path): The file, in a folder that exists; the format's suffix is appended.
        format (str): 'library' for the state dict of the library's own model (``.pth``), 'safetensors',
            'onnx' or 'torch.export' (``.pt2``). The last two take normalised images (N, C, H, W) of one
            height and width, with any N, and yield logits (N, K).
        images (Tensor): Two or more normalised images (N, C, H, W), to compare with.
        classes (Sequence[str], optional): The names of the classes. Defaults to None: the names
            that the model knows.

    Returns:
        Path: The file.

    Raises:
        ValueError: If there is no such format, the model has no library, a package is missing, or
            the content differs from the model.
        WriteError: If the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f'format is {format!r}; it must be one of {", ".join(FORMATS)}')
    write, suffix = FORMATS[format]
    facts = describe(model)
    with evaluating(facts.model), torch.no_grad():
        content = write(facts, images, metadata(facts, classes, images))
    path = Path(path).with_name(f'{Path(path).name}{suffix}')
    write_file(path, content)
    return path


def metadata(facts: ModelFacts, classes: Sequence[str] | None, inputs: Tensor) -> dict[str, Any]:
    """The metadata that a user of the file needs; unknown values are left out.

    ``mean`` and ``std`` are in units of 0..255. ``size`` is height and width of the inputs. It may
    differ from the size that the library names.
    """
    images = facts.images
    found = dict(
        classes=list(classes or facts.classes or ()) or None,
        mean=images.mean,
        std=images.std,
        channel_order=images.order,
        size=tuple(inputs.shape[2:]),
        activation=facts.activation,
    )
    return {key: value for key, value in found.items() if value is not None}


class _Logits(nn.Module):
    """A classifier as a function from normalised images to logits."""

    def __init__(self, facts: ModelFacts) -> None:
        super().__init__()
        self.model = facts.model
        self.logits_in = facts.logits_in

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_in(forward_tensor(self.model, images))


def _library_model(facts: ModelFacts) -> nn.Module:
    """The other library's network in a classifier, else the classifier itself."""
    wrappers = PlainClassifier, TimmClassifier, HuggingFaceClassifier
    return facts.model.model if isinstance(facts.model, wrappers) else facts.model


def _library(facts: ModelFacts, images: Tensor, known: dict) -> bytes:
    network = _library_model(facts)
    if network is facts.model:
        raise ValueError(
            f'format: the student is a {type(network).__name__} of mmpretrain and no network of another '
            "library; use 'mmpretrain' or 'safetensors'"
        )
    data = io.BytesIO()
    torch.save(dict(meta=known, state_dict=network.state_dict()), data)
    data.seek(0)
    _compare_weights(network, torch.load(data, 'cpu', weights_only=True)['state_dict'])
    return data.getvalue()


def _safetensors(facts: ModelFacts, images: Tensor, known: dict) -> bytes:
    network = _library_model(facts)
    # safetensors refuses tensors that share memory, such as tied weights
    tensors = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
    data = safetensors.torch.save(tensors, {'format': 'pt', **_texts(known)})
    _compare_weights(network, safetensors.torch.load(data))
    return data


def _texts(known: dict[str, Any]) -> dict[str, str]:
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in known.items()}


def _compare_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in network.state_dict().items():
        if key not in state or not torch.equal(state[key].nan_to_num(), value.cpu().nan_to_num()):
            raise ValueError(f'format: tensor {key!r} does not come back from the file as it was')


def _program(facts: ModelFacts, images: Tensor) -> torch.export.ExportedProgram:
    any_number = {0: torch.export.Dim.DYNAMIC}
    try:
        return torch.export.export(
            _Logits(facts), (images,), dynamic_shapes=(any_number,), strict=False
        )
    except Exception as error:  # of many types; the first line has the reason
        raise ValueError(
            f'format: torch.export cannot take the {type(_library_model(facts)).__name__}: '
            f'{str(error).strip().partition(chr(10))[0]}'
        ) from error


def _torch_export(facts: ModelFacts, images: Tensor, known: dict) -> bytes:
    data = io.BytesIO()
    torch.export.save(_program(facts, images), data, extra_files={METADATA: json.dumps(known)})
    data.seek(0)
    loaded = torch.export.load(data).module()
    _compare_logits(facts, loaded, images, 'torch.export')
    return data.getvalue()


def _onnx(facts: ModelFacts, images: Tensor, known: dict) -> bytes:
    try:
        onnx, runtime, _ = map(import_module, ('onnx', 'onnxruntime', 'onnxscript'))
    except ImportError as error:
        raise ValueError(
            f"format 'onnx' needs {error.name}, which is not installed: pip install onnx onnxruntime "
            "onnxscript, or install mmkdx with its extra 'export'"
        ) from error
    program = torch.onnx.export(
        _program(facts, images), input_names=['images'], output_names=['logits'], verbose=False
    )
    model = program.model_proto
    onnx.helper.set_model_props(model, _texts(known))
    data = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=['CPUExecutionProvider'])

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {'images': inputs.cpu().numpy()})[0])

    _compare_logits(facts, run, images, 'onnxruntime')
    return data


def _compare_logits(
    facts: ModelFacts, loaded: Callable[[Tensor], Tensor], images: Tensor, name: str
) -> None:
    """Compares with all images, and with one, since the export saw only one batch size."""
    for batch in (images, images[:1]):
        expected, found = facts.logits(batch).cpu(), loaded(batch).cpu()
        apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not apart <= 1e-4:
            raise ValueError(
                f"format: {name}'s logits differ from the model's by {apart:.1e} of the largest"
            )


#: For each format the function that makes the file's content, and the suffix.
FORMATS: dict[str, tuple[Callable[[ModelFacts, Tensor, dict], bytes], str]] = {
    'library': (_library, '.pth'),
    'safetensors': (_safetensors, '.safetensors'),
    'onnx': (_onnx, '.onnx'),
    'torch.export': (_torch_export, '.pt2'),
}
