"""Does an explanation change when the model's weights are random?"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkdx.arguments import errors_named, flag, integer, one_of
from mmkdx.functional import degenerate_maps, full_precision
from mmkdx.functional.perturbation import sample_generators
from mmkdx.functional.similarity import spearman_correlation
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric
from mmkdx.registry import METRICS


@METRICS.register_module()
class ParameterRandomisation(ExplanationMetric):
    """Model parameter randomisation test (MPRT): a map must change when the weights become random.

    A copy of the model is randomised layer by layer, and each state is explained for the same class.
    A layer is a module with parameters of its own; layers stand in the order of the forward pass, and
    random layers stay random in all later states.

    - ``mprt``: mean over the states of Spearman's correlation between the map and the map of the
      randomised model, in [-1, 1], lower is better. The original model is not one of the states.
    - ``mprt_last``: the correlation for the fully randomised model, in [-1, 1], lower is better.
    - ``emprt``: relative rise of the entropy of the map's values from the original to the fully
      randomised model, higher is better. The histogram has 100 equal bins over the range of each map.
      It does not depend on where the values are.

    A constant or non-finite map has no correlation and no entropy. If a sample has such a map in one
    state, ``mprt`` does not count the sample; in the last state, the other scores do not either.
    To pass the test is necessary and not sufficient: maps of pure noise pass it.

    The running statistics of batch norm do not fit random weights. They are estimated again on each
    batch, in all batch norms from the first random layer on. So scores of such networks depend on how
    images are batched.

    The test explains each batch once a layer, and ``smooth`` times as often with ``smooth``. Use it in
    ``test.py``, and not for validation during training.

    Sources: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; Hedström et al., "Sanity
    Checks Revisited: An Exploration to Repair the Model Parameter Randomisation Test", 2023.

    Args:
        order (str): 'bottom_up' begins with the first layer and 'top_down' with the last one; 'last'
            measures the fully randomised model alone. Defaults to 'bottom_up'.
        how (str): 'permute' shuffles the entries of each parameter, also of class tokens, position
            embeddings and LayerScale. 'init' calls ``reset_parameters`` of the modules that have it, and
            shuffles the parameters that this leaves as they were. Defaults to 'permute'.
        smooth (int): If above 0, each map is the mean over so many copies of the image. All but one have
            Gaussian noise whose standard deviation is a tenth of the image's range. Defaults to 0.
        absolute (bool): Whether magnitudes of maps are correlated; ``emprt`` always takes signed maps.
            Defaults to False.
        seed (int): Seed of the weights and the noise. Each parameter, with 'init' each module, has
            a generator of its own, seeded by this and its name. Defaults to 0.

    Raises:
        ValueError: If an argument is not as above; in ``process`` if there are only maps and no model,
            the model has no parameters, or it cannot be copied.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        mprt='Rank correlation with the maps of models with random weights.',
        mprt_last='The same with all weights random.',
        emprt="Rise of the map's entropy when all weights are random.",
    )
    better = dict(mprt='lower', mprt_last='lower', emprt='higher')

    def __init__(
        self,
        order: str = 'bottom_up',
        how: str = 'permute',
        smooth: int = 0,
        absolute: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        owner = 'ParameterRandomisation'
        self.order = one_of(f'{owner}.order', order, ('bottom_up', 'top_down', 'last'))
        self.how = one_of(f'{owner}.how', how, ('permute', 'init'))
        self.smooth = integer(f'{owner}.smooth', smooth, 0)
        self.absolute = flag(f'{owner}.absolute', absolute)
        self.seed = integer(f'{owner}.seed', seed, 0)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The scores of one model's maps."""
        if model.model is None or model.like is None:
            raise ValueError(
                'ParameterRandomisation explains randomised copies of a model, and the maps came '
                'without their model'
            )
        if next(model.model.parameters(), None) is None:
            raise ValueError(
                f'ParameterRandomisation: {type(model.model).__name__} has no parameters to randomise'
            )
        # Parameters that are made in inference mode cannot take part in a graph
        with torch.inference_mode(False):
            failed = f'ParameterRandomisation cannot copy {type(model.model).__name__}: '
            with errors_named(failed, errors=(RuntimeError, TypeError)):
                network = copy.deepcopy(model.model).eval()
            other = model.like(network)
            # The explainer also chooses its layer here, where the weights are still trained
            original = self._explain(batch, other)
            values = []
            for _ in self._states(batch, other):
                maps = self._explain(batch, other)
                values.append(map_correlation(original, maps, self.absolute))
        before, after = histogram_entropy(original), histogram_entropy(maps)
        return dict(
            mprt=torch.stack(values).mean(0),
            mprt_last=values[-1],
            emprt=(after - before) / before,
        )

    def _explain(self, batch: ExplainedBatch, model: Explained) -> Tensor:
        """The maps (N, h, w) of a model, smooth ones if that is set, with the same noise each time."""
        images = batch.inputs
        total = full_precision(model.explain(images, model.targets).detach())
        generators = sample_generators(batch.index, self.seed, images.device)
        flat = images.flatten(1)
        deviation = 0.1 * (flat.amax(1) - flat.amin(1))[:, None, None, None]
        for _ in range(self.smooth - 1):
            noise = [
                torch.randn(images.shape[1:], generator=g, device=g.device) for g in generators
            ]
            noisy = images + deviation * torch.stack(noise).to(images)
            total = total + model.explain(noisy, model.targets).detach()
        return total / max(self.smooth, 1)

    def _states(self, batch: ExplainedBatch, model: Explained) -> Iterator[None]:
        """Brings the model, which is a copy, into one state after another."""
        places = forward_places(model, batch.inputs)
        names = {parameter: name for name, parameter in model.model.named_parameters()}
        layers: dict[nn.Module, dict[str, nn.Parameter]] = {}
        for module in places:
            # A parameter that modules share belongs to the first of them
            own = [p for p in module.parameters(recurse=False) if p in names]
            if own:
                layers[module] = {names.pop(parameter): parameter for parameter in own}
        ordered = list(layers)
        if self.order == 'top_down':
            ordered.reverse()
        for module in ordered:
            randomise(module, layers[module], self.how, self.seed)
            if self.order != 'last' or module is ordered[-1]:
                first = min(places[module], places[ordered[0]])
                later = [each for each in places if places[each] >= first]
                estimate_statistics(model, batch.inputs, later)
                yield


def map_correlation(first: Tensor, second: Tensor, absolute: bool = False) -> Tensor:
    """Spearman's correlation (N, ) of maps (N, h, w), or their magnitudes; NaN for a constant one."""
    if absolute:
        first, second = first.abs(), second.abs()
    bad = degenerate_maps(first) | degenerate_maps(second)
    return torch.where(bad, float('nan'), spearman_correlation(first, second))


def histogram_entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """The entropy (N, ), in nats, of the values of maps (N, h, w); NaN for a constant map.

    The histogram has equal bins between the smallest and the largest value of each map.
    """
    flat = full_precision(maps).flatten(1)
    bad = degenerate_maps(maps)[:, None]
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    place = torch.where(bad, 0, (flat - low) / (high - low) * bins)
    counts = torch.zeros_like(flat[:, :1]).expand(-1, bins).clone()
    # The largest value belongs to the last bin
    counts.scatter_add_(1, place.long().clamp(max=bins - 1), torch.ones_like(flat))
    entropy = torch.special.entr(counts / flat.shape[1]).sum(1)
    return torch.where(bad[:, 0], float('nan'), entropy)


def forward_places(model: Explained, images: Tensor) -> dict[nn.Module, int]:
    """All modules of a model in the order of its forward pass, with their places.

    A module that is not called itself, such as the output projection of ``nn.MultiheadAttention``, has
    the place of its parent.
    """
    modules = dict(model.model.named_modules())
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: tuple) -> None:
        called.setdefault(module, len(called))

    handles = [module.register_forward_pre_hook(note) for module in modules.values()]
    model.predict(images[:1])
    for handle in handles:
        handle.remove()
    places: dict[nn.Module, int] = {}
    for name, module in modules.items():
        parent = modules[name.rpartition('.')[0]]
        places[module] = called.get(module, places.get(parent, -1))
    return dict(sorted(places.items(), key=lambda item: item[1]))


def randomise(module: nn.Module, own: dict[str, nn.Parameter], how: str, seed: int) -> None:
    """Randomises parameters of a module in place, see ``ParameterRandomisation``.

    Args:
        module (nn.Module): The module.
        own (dict[str, nn.Parameter]): Its parameters, by their paths in the model.
        how (str): 'permute' or 'init'.
        seed (int): The seed, which is hashed together with a path.
    """
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    if how == 'init' and hasattr(module, 'reset_parameters'):
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(_hashed(seed, next(iter(own))))
            module.reset_parameters()
    for name, parameter in own.items():
        if torch.equal(parameter, before[name]):
            # Drawn on the CPU, so that all devices draw the same
            generator = torch.Generator().manual_seed(_hashed(seed, name))
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data.copy_(before[name].flatten()[order].view_as(parameter))


def estimate_statistics(model: Explained, images: Tensor, modules: list[nn.Module]) -> None:
    """Sets the running statistics of the batch norms among some modules to those of a batch."""
    handles = [
        module.register_forward_pre_hook(_estimate)
        for module in modules
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if handles:
        model.predict(images)
    for handle in handles:
        handle.remove()


def _estimate(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    values = full_precision(inputs[0]).transpose(0, 1).flatten(1)
    norm.running_mean.copy_(values.mean(1))
    norm.running_var.copy_(values.var(1, unbiased=False))


def _hashed(seed: int, name: str) -> int:
    return zlib.crc32(f'{seed} {name}'.encode())
