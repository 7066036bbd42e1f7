"""Soft targets from the similarity of a model's explanations of its classes.

An interpretation of Gu, Wu and Tresp, "Introspective Learning by Distilling Knowledge from Online
Self-explanation", ACCV 2020. We could read only its abstract. So it is our choice what is
explained, how explanations are compared, and how similarities become targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import number, one_of, positive
from mmkdx.functional.precision import full_precision, no_autocast
from mmkdx.functional.teacher_target import shuffle_others

#: Explanations of class k of a GAP + linear classifier: its weights (the gradient with respect to
#: the features), its class activation map, or gradient times activation.
EXPLAINERS = ('weight', 'cam', 'grad_act')

#: The ways to compute targets from similarities.
MODES = ('mass', 'softmax')


def class_similarity(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    explainer: str = 'cam',
    center: bool = True,
    relu: bool = False,
) -> Tensor:
    """The cosine between each image's explanations of its label and of every class.

    It has a closed form and is differentiable in features and weight. The cosine of a zero
    explanation is 0.

    Args:
        features (Tensor): What enters global average pooling, of shape (N, C, H, W).
        weight (Tensor): The weight of the linear classifier, of shape (K, C).
        labels (Tensor): Classes of shape (N, ).
        explainer (str): One of ``EXPLAINERS``. Defaults to 'cam'.
        center (bool): Whether to explain a logit minus the mean of all logits. Like the softmax,
            centred cosines do not change if the same vector is added to all rows of the weight.
            Defaults to True.
        relu (bool): Whether class activation maps keep only their positive part, as in Grad-CAM.
            Opposite maps are then no further apart than unrelated ones. Defaults to False.

    Returns:
        Tensor: Cosines in fp32 at least, of shape (N, K), with 1 at the label.

    Raises:
        ValueError: If there is no such explainer, or ``relu`` is set and it is not 'cam'.
    """
    one_of('explainer', explainer, EXPLAINERS)
    if relu and explainer != 'cam':
        raise ValueError(f"relu is for the explainer 'cam', and it is {explainer!r}")
    with no_autocast(features):
        features, weight = full_precision(features).flatten(2), full_precision(weight)
        if center:
            weight = weight - weight.mean(0)
        if explainer == 'weight':
            squares = weight.square().sum(1).expand(len(labels), -1)
            return cosines(weight[labels] @ weight.T, squares, labels)
        if explainer == 'grad_act':
            energy = features.square().sum(2)
            products = (weight[labels] * energy) @ weight.T
            return cosines(products, energy @ weight.square().T, labels)
        maps = torch.einsum('ncp,kc->nkp', features, weight)
        maps = maps.relu() if relu else maps
        own = maps.gather(1, labels[:, None, None].expand(-1, -1, maps.shape[2]))
        return cosines((maps @ own.mT)[..., 0], maps.square().sum(2), labels)


def cosines(products: Tensor, squares: Tensor, labels: Tensor) -> Tensor:
    """The cosines (N, K) of explanations with the label's: 1 at the label, 0 if one is zero.

    Args:
        products (Tensor): The explanations' inner products with the label's, of shape (N, K).
        squares (Tensor): The explanations' squared norms, of shape (N, K).
        labels (Tensor): Classes of shape (N, ).
    """
    own = labels[:, None]
    # The root's gradient at zero would be infinite, also if its value is not chosen
    norms = torch.where(squares > 0, squares, 1).sqrt()
    there = (squares > 0) & (squares.gather(1, own) > 0)
    found = torch.where(there, products / (norms * norms.gather(1, own)), 0)
    return found.scatter(1, own, 1.0)


def soft_targets(
    similarity: Tensor,
    labels: Tensor,
    mode: str = 'mass',
    eps: float = 0.1,
    tau: float = 0.25,
    permute: bool = False,
) -> Tensor:
    """Targets over all classes from the similarity of explanations.

    - 'mass': the label gets 1 - eps. The other classes share eps by the softmax of their
      similarities at temperature tau. With a large tau this is label smoothing over the other
      classes. With eps = 0 it is the label.
    - 'softmax': the softmax of all similarities at temperature tau, as if they were a teacher's
      logits.

    Args:
        similarity (Tensor): Of shape (N, K), 1 at the label.
        labels (Tensor): Classes of shape (N, ).
        mode (str): 'mass' or 'softmax'. Defaults to 'mass'.
        eps (float): The probability of all other classes together, in [0, 1]. Defaults to 0.1.
        tau (float): The temperature, above 0. Defaults to 0.25.
        permute (bool): Whether to permute each image's similarities of the other classes. This
            keeps their values, but not their meaning. Defaults to False.

    Returns:
        Tensor: Probabilities of shape (N, K).

    Raises:
        ValueError: If there is no such mode, or eps or tau is out of range.
    """
    one_of('mode', mode, MODES)
    number('eps', eps, 0, 1)
    positive('tau', tau)
    own = F.one_hot(labels, similarity.shape[1]).bool()
    if permute:
        similarity = shuffle_others(similarity, labels)
    if mode == 'softmax':
        return (similarity / tau).softmax(1)
    others = (similarity / tau).masked_fill(own, -torch.inf).softmax(1)
    return torch.where(own, 1 - eps, eps * others)


def tau_for_mass(classes: int, eps: float, mean: float = 0.0) -> float:
    """The temperature at which mode 'softmax' gives the label 1 - eps, for eps in (0, 1).

    ``mean`` is the mean similarity of the other classes.
    """
    return (1 - mean) / math.log((1 - eps) * (classes - 1) / eps)


def gradient_similarity(
    logits: Tensor,
    features: Tensor,
    labels: Tensor,
    explainer: str = 'cam',
    center: bool = True,
    relu: bool = False,
    chunk: int = 16,
    candidates: int | None = None,
    create_graph: bool = False,
    to_map: Callable[[Tensor], Tensor] = lambda value: value,
) -> Tensor:
    """``class_similarity`` from the gradients of the logits, for any head and any layer.

    Each class takes one vector-Jacobian product from the logits to the features. If GAP + linear
    follows, the result equals the closed form. The parameters' gradients and the graph stay
    unchanged. Images must not mix between the features and the logits, as they do in a batch norm
    in training mode.

    Args:
        logits (Tensor): Of shape (N, K), with a graph.
        features (Tensor): The values that the logits depend on: a layer's activations, or pixels.
        labels (Tensor): Classes of shape (N, ).
        explainer (str): 'weight' explains by the gradient, 'grad_act' by gradient times activation,
            'cam' by the activations weighted by the gradient's mean over positions. Defaults to
            'cam'.
        center (bool): See ``class_similarity``. Defaults to True.
        relu (bool): See ``class_similarity``. Defaults to False.
        chunk (int): The number of classes in one backward pass. Memory holds the features so many
            times. Defaults to 16.
        candidates (int, optional): The number of classes with the highest logits to explain,
            beside the label. All other classes get the mean similarity of these. Defaults to None
            (all).
        create_graph (bool): Whether the result has a graph. Defaults to False.
        to_map (Callable): Brings the features, and their gradients, to the shape (N, C, H, W), which
            'cam' needs. Defaults to leaving them as they are.

    Returns:
        Tensor: Cosines in fp32 at least, of shape (N, K), with 1 at the label.
    """
    count, classes = logits.shape
    activations = full_precision(to_map(features))
    if not create_graph:
        activations = activations.detach()

    def explain(index: Tensor) -> Tensor:
        """The explanations of classes (N, n), of shape (n, N, numbers)."""
        weights = F.one_hot(index.T, classes).to(logits.dtype)
        if center:
            weights = weights - 1 / classes
        gradients = torch.autograd.grad(
            logits,
            features,
            weights if len(weights) > 1 else weights[0],
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=len(weights) > 1,
        )[0]
        gradients = gradients if len(weights) > 1 else gradients[None]
        maps = torch.stack([full_precision(to_map(each)) for each in gradients])
        if explainer == 'grad_act':
            maps = maps * activations
        elif explainer == 'cam':
            maps = (maps.mean((3, 4), keepdim=True) * activations).sum(2)
            maps = maps.relu() if relu else maps
        return maps.flatten(2)

    with no_autocast(logits):
        if candidates is None:
            index = torch.arange(classes, device=labels.device).expand(count, -1)
            place = labels
        else:
            # The label first, then the other classes of the highest logits
            others = logits.detach().scatter(1, labels[:, None], -torch.inf)
            others = others.topk(min(candidates, classes - 1), 1).indices
            index, place = torch.cat([labels[:, None], others], 1), torch.zeros_like(labels)
        own = explain(labels[:, None])[0]
        pairs = [
            ((maps * own).sum(2).T, maps.square().sum(2).T)
            for maps in map(explain, index.split(chunk, 1))
        ]
        found = cosines(*(torch.cat(column, 1) for column in zip(*pairs)), place)
        if candidates is None:
            return found
        rest = found[:, 1:].mean(1, keepdim=True).expand(-1, classes)
        return rest.scatter(1, index, found)


def gradient_products(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    multiply: bool = False,
    center: bool = True,
) -> tuple[Tensor, Tensor]:
    """The inner products of the label's gradient with all classes' gradients (one VJP, one JVP).

    With J the Jacobian of the logits, :math:`g_y = J^T e_y` is one backward pass. Then
    :math:`J g_y` holds the products with all :math:`g_k` at once, for any number of classes.

    Args:
        function (Callable): Computes logits (N, K); an image's logits depend only on it.
        inputs (Tensor): Images of shape (N, 3, H, W).
        labels (Tensor): Classes of shape (N, ).
        multiply (bool): Whether gradients are multiplied by the images. Defaults to False.
        center (bool): See ``class_similarity``. Defaults to True.

    Returns:
        tuple[Tensor, Tensor]: The products, of shape (N, K), and the squared norm of the label's
        explanation, of shape (N, ).
    """
    logits, pull = torch.func.vjp(function, inputs)
    weights = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if center:
        weights = weights - 1 / logits.shape[1]
    (gradient,) = pull(weights)
    explanation = gradient * inputs if multiply else gradient
    products = _push(function, inputs, explanation, multiply, center)
    return products, explanation.square().flatten(1).sum(1)


def gradient_norms(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    probes: int,
    multiply: bool = False,
    center: bool = True,
) -> Tensor:
    """Estimates of the squared norms of all classes' gradients, by Hutchinson's method.

    Each is the mean of :math:`(J v)_k^2` over ``probes`` normal random v. Cosines made of them have an
    error of about 0.03 with 8 probes, and of 0.01 with 32. Other arguments: see
    ``gradient_products``.
    """
    squares = [
        _push(function, inputs, torch.randn_like(inputs), multiply, center).square()
        for _ in range(probes)
    ]
    return torch.stack(squares).mean(0)


def _push(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    direction: Tensor,
    multiply: bool,
    center: bool,
) -> Tensor:
    """The derivative of the logits (N, K) with respect to the inputs, in a direction."""
    direction = direction * inputs if multiply else direction
    change = torch.func.jvp(function, (inputs,), (direction,))[1]
    return change - change.mean(1, keepdim=True) if center else change
