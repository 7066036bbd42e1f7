"""The CAM family: maps from a layer's activations and their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mmkdx.arguments import one_of
from mmkdx.explain.base import Evidence, LayerExplainer
from mmkdx.explain.targets import Targets, class_weights, function_scores
from mmkdx.functional import ClassMaps, full_precision, tokens_to_map
from mmkdx.models.families import describe
from mmkdx.models.intercept import evaluating
from mmkdx.models.taps import TapSet
from mmkdx.registry import EXPLAINERS


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """Returns maps (N, h, w): activations (N, C, h, w), summed with channel weights (N, C)."""
    return torch.einsum('nc,nchw->nhw', weights, activations)


class BaseCAM(LayerExplainer):
    """Base of the methods that combine a layer's activations and their gradients.

    A method is ``combine``. All take the arguments of ``LayerExplainer``.
    """

    needs_gradients = True

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor | None) -> Tensor:
        """The method: makes raw maps (N, h, w) from activations and gradients (N, C, h, w).

        The gradients are the score's by the activations; None unless ``needs_gradients``.
        """

    def maps(self, evidence: Evidence, weights: Tensor) -> list[Tensor]:
        """See ``LayerExplainer``."""
        activations = evidence.activations
        if not self.needs_gradients:
            return [self.combine(each, None) for each in activations]
        return list(map(self.combine, activations, evidence.gradients(weights)))

    def from_forward(
        self,
        activations: Tensor,
        logits: Tensor,
        targets: Targets = None,
        image: Sequence[int] | None = None,
    ) -> Tensor:
        """Explains a forward pass that ran already, such as the training step's.

        Args:
            activations (Tensor): Its layer's activations (N, C, h, w), or tokens (N, L, C).
            logits (Tensor): Its logits of shape (N, K); for a function as target, what the model
                returned.
            targets (int | str | Tensor | Sequence | Callable, optional): See ``__call__``; not 'all'.
            image (Sequence[int], optional): Height and width of the images, which tokens need.

        Returns:
            Tensor: Raw maps of shape (N, h, w), with gradients to all that made them.

        Raises:
            ValueError: If the activations carry no gradient, or the logits do not depend on them.
        """
        if activations.dim() == 3 and image is None:
            raise ValueError('image is None; pass the image size: the grid of tokens depends on it')
        if not activations.requires_grad:
            raise ValueError(
                f'{type(self).__name__}: the activations carry no gradient, so a loss of the maps '
                'would train nothing; run the forward pass with gradients, and do not freeze the layers '
                'before this one'
            )
        gradients = None
        if self.needs_gradients:
            if callable(targets):
                logits = function_scores(targets, logits, len(activations))
            score = (logits * class_weights(targets, logits)).sum()
            (gradients,) = torch.autograd.grad(
                score, activations, create_graph=True, allow_unused=True
            )
            if gradients is None:
                raise ValueError(
                    f'{type(self).__name__}: the logits do not depend on the activations; both must '
                    'come from one forward pass'
                )
            gradients = full_precision(_as_map(gradients, image))
        return self.combine(full_precision(_as_map(activations, image)), gradients)


@EXPLAINERS.register_module()
class CAM(BaseCAM):
    """``sum_c J_kc A_c``, with J the logit's derivatives at pooled features. Its mean is the logit.

    Behind global average pooling and one linear layer J is the classifier's weight. Any other head
    behind pooled or flattened features has a remainder beside the mean, like a bias (see
    ``mmkdx.functional.linearised.LinearisedHead``). ``GradCAM`` is the same with ``norm='full'``,
    divided by the number of positions. Dropout behind the features is left out. Where a norm has
    nothing to divide by, as for features that are zero, the map is zero.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, Eq. 2; for
    other heads our own.

    Args:
        differentiable (bool): See ``Explainer``.
        norm (str): 'frozen' takes the divisors of norms behind the features (layer norm, cosine) as
            numbers; with 'full' the mean of their maps is zero. Defaults to 'frozen'.
    """

    classes_alone = True

    def __init__(self, differentiable: bool = False, norm: str = 'frozen') -> None:
        super().__init__('auto', differentiable)
        self.norm = one_of('norm', norm, ('frozen', 'full'))
        self._taps: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        taps = self._find(model, inputs)
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            with taps.record(model) as values:
                logits = full_precision(describe(model).logits(inputs))
        maps = values['cam']
        if self.differentiable and not maps.features.requires_grad:
            raise ValueError(
                f'CAM: layer {str(taps.taps["cam"])!r} carries no gradient (frozen parameters, or '
                'torch.no_grad), so a loss of its map would train nothing'
            )
        if maps.head and self.norm == 'full':
            head, pooled = maps.head.head, maps.head.mean_pooled
            maps = ClassMaps.linearised(maps.features, head, 'full', pooled=pooled)
        every = isinstance(targets, str) and targets == 'all'
        weights = None if every else class_weights(targets, logits)
        if maps.head:
            features, head = maps.features, maps.head
            found = maps.full() if every else head.weighted(features, weights[:, None])
            flat = head.degenerate(features)[:, None, None, None]
            found = torch.where(flat, 0, found)
            return found if every else found[:, 0]
        if every:
            return maps.full()
        return weighted_sum(weights @ full_precision(maps.weight), full_precision(maps.features))

    def _find(self, model: nn.Module, inputs: Tensor) -> TapSet:
        """Finds the taps of the features, once for each model and image size."""
        known = self._taps.setdefault(model, {})
        key = (tuple(inputs.shape[2:]), *map(type, model.modules()))
        if key not in known:
            taps = TapSet({'cam': 'CAM', 'logits': 'CAM'}, 'model')
            with evaluating(model), torch.no_grad():
                values = taps.resolve(model, inputs[:1].clone())
                logits, found = full_precision(values['logits']), values['cam'].logits()
            if (found - logits).abs().max() > 1e-2 * logits.abs().max():
                raise ValueError(
                    f'CAM: the layers behind the features of {type(model).__name__} use more than '
                    'these features, such as random numbers; use GradCAM'
                )
            known[key] = taps
        return known[key]

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``: of gradients that are equal at all positions."""
        return weighted_sum(gradients.sum((2, 3)), activations)


@EXPLAINERS.register_module()
class GradCAM(BaseCAM):
    """``sum_c mean(g_c) A_c``, with A the activations and g the score's gradient with respect to A.

    Source: Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based
    localization", ICCV 2017, Eq. 1 and 2, without its final ReLU, which belongs to drawing.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        return weighted_sum(gradients.mean((2, 3)), activations)


@EXPLAINERS.register_module()
class GradCAMPlusPlus(BaseCAM):
    """``sum_c w_c A_c`` with ``w_c = sum_ij α_ij relu(g_ij)`` and ``α = g² / (2 g² + S_c g³)``.

    ``S_c`` is the sum of A_c over space. α is 0 where the gradient or the denominator is not positive;
    after a ReLU the denominator always is.

    Source: Chattopadhay et al., "Grad-CAM++: Generalized gradient-based visual explanations for deep
    convolutional networks", WACV 2018, Eq. 6 and 19, for the score ``exp(logit)``, whose derivatives
    are powers of the logit's but for a positive factor.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        # α = 1 / (2 + S g), reduced by g²: where pooling divides by h · w, g² is far below rounding
        denominator = 2 + activations.sum((2, 3), keepdim=True) * gradients
        counts = (gradients > 0) & (denominator > 0)
        weights = torch.where(counts, gradients / denominator.where(counts, 1), 0).sum((2, 3))
        return weighted_sum(weights, activations)


@EXPLAINERS.register_module()
class XGradCAM(BaseCAM):
    """``sum_c w_c A_c`` with ``w_c = sum_ij(g_c A_c) / sum_ij A_c``.

    Source: Fu et al., "Axiom-based Grad-CAM: Towards accurate visualization and explanation of CNNs",
    BMVC 2020, Eq. 8. A channel with the sum 0 has weight 0 after a ReLU; a signed one gets a large one.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        total = activations.sum((2, 3)) + 1e-8
        return weighted_sum((gradients * activations).sum((2, 3)) / total, activations)


@EXPLAINERS.register_module()
class HiResCAM(BaseCAM):
    """``sum_c g_c ⊙ A_c``.

    Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks", arXiv 2011.08891, Eq. 4.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        return (gradients * activations).sum(1)


@EXPLAINERS.register_module()
class LayerCAM(BaseCAM):
    """``sum_c relu(g_c) ⊙ A_c``.

    Source: Jiang et al., "LayerCAM: Exploring hierarchical class activation maps for localization",
    TIP 2021, Eq. 6 and 7.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        return (gradients.relu() * activations).sum(1)


@EXPLAINERS.register_module()
class EigenCAM(BaseCAM):
    """The projection of the centred activations on their first principal component.

    Source: Muhammad and Yeasin, "Eigen-CAM: Class activation map using principal components", IJCNN
    2020, Sec. III; centred over positions, like its public implementations. The sign is arbitrary; here
    the map correlates positively with the mean activation. The map is the same for all classes.
    """

    needs_gradients = False
    class_specific = False

    def combine(self, activations: Tensor, gradients: Tensor | None = None) -> Tensor:
        """See ``BaseCAM``."""
        return _first_component(activations)


@EXPLAINERS.register_module()
class EigenGradCAM(BaseCAM):
    """Eigen-CAM of ``g ⊙ A``, which depends on the class; with the sign of its sum over channels.

    Source: the method of that name in the package pytorch-grad-cam; there is no paper.
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``."""
        return _first_component(gradients * activations)


def _as_map(values: Tensor, image: Sequence[int] | None) -> Tensor:
    return tokens_to_map(values, image) if values.dim() == 3 else values


def _first_component(activations: Tensor) -> Tensor:
    """Returns the first principal component's score at each position, of shape (N, h, w)."""
    values = activations.flatten(2).transpose(1, 2)
    values = values - values.mean(1, keepdim=True)
    _, positions, channels = values.shape
    # The smaller of the two Gram matrices; both have the same leading eigenvalue
    gram = values @ values.mT if positions <= channels else values.mT @ values
    # Equal eigenvalues, such as of two dead channels, have a NaN gradient: tiny shifts separate them
    size = gram.detach().diagonal(dim1=1, dim2=2).mean(1)[:, None]
    size = torch.where(size > 0, size, 1)
    steps = torch.arange(gram.shape[1], device=gram.device) * torch.finfo(gram.dtype).eps
    eigenvalues, vectors = torch.linalg.eigh(gram + torch.diag_embed(size * steps))
    if positions <= channels:
        scores = (gram @ vectors[..., -1:]).squeeze(2) / eigenvalues[:, -1:].sqrt()
    else:
        scores = (values @ vectors[..., -1:]).squeeze(2)
    sign = torch.where((scores * values.sum(2)).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return (scores * sign.to(scores)).unflatten(1, activations.shape[2:])
