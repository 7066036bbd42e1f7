"""Removes a part of the information in a teacher's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkdx.arguments import one_of, positive, text
from mmkdx.functional import full_precision
from mmkdx.functional.teacher_target import ANCHORS, KINDS, NEEDS, component_target
from mmkdx.models.teacher_statistics import TOOL, check_classes, check_tau, read_statistics

OPTION = 'teacher_target.statistics'


class TeacherTarget(nn.Module):
    """Replaces a teacher's logits by logits that keep only a part of their information.

    It works between any teacher and any loss of logits: ``teacher_target=dict(kind='permute')`` in
    a term. For the probabilities t' that remain it returns the logits tau log t'. Their softmax at
    the temperature tau is t'. A probability of 0 becomes the smallest normal number (1.2e-38 in
    fp32), so that all logits are finite. 'full' returns its input unchanged.

    A loss that divides logits by tau, as ``KLDivLoss``, ``DKDLoss`` and ``DISTLoss`` do, compares with
    t' exactly. A loss that scales them in another way compares with a t' at another temperature.
    This holds for ``LogitStdLoss`` and for the label's part of ``NKDLoss`` and ``RLDLoss``.

    Args:
        kind (str): What is kept; see ``mmkdx.functional.teacher_target.component_target``.
        statistics (str, optional): The file that ``tools/analysis_tools/teacher_statistics.py`` makes,
            for 'meanmass', 'weightsim', 'classmean' and 'classmean_instmass'. Defaults to None.
        tau (float, optional): The temperature of the teacher's probabilities. Defaults to None (the
            temperature of the term's loss).
        anchor (str): The class that keeps its probability: the 'label', or 'argmax', the teacher's
            prediction, which needs no labels. Defaults to 'label'.
        similarity_tau (float): The temperature of the cosines of 'weightsim'. Defaults to 0.25.

    Raises:
        ValueError: If an argument is out of range, or the file does not hold what ``kind`` needs.
        FileNotFoundError: If there is no file of statistics.
    """

    def __init__(
        self,
        kind: str,
        statistics: str | None = None,
        tau: float | None = None,
        anchor: str = 'label',
        similarity_tau: float = 0.25,
    ) -> None:
        super().__init__()
        self.kind = one_of('teacher_target.kind', kind, KINDS)
        self.tau = None if tau is None else positive('teacher_target.tau', tau)
        self.anchor = one_of('teacher_target.anchor', anchor, ANCHORS)
        self.similarity_tau = positive('teacher_target.similarity_tau', similarity_tau)
        if statistics is not None:
            text(OPTION, statistics, 'the path of a file')
        self.file = statistics
        if kind in NEEDS:
            self._load()

    def forward(self, logits: Tensor, target: Tensor | None = None) -> Tensor:
        """Changes logits (N, K) to logits (N, K) in fp32 or more; ``target`` has the classes (N, ).

        Raises:
            ValueError: If there is no temperature, labels are missing or soft, or the statistics
                have another temperature or other classes.
        """
        if self.kind == 'full':
            return logits
        if self.tau is None:
            raise ValueError('teacher_target.tau is missing')
        if self.anchor == 'label':
            self._check_labels(target)
        statistics = {}
        if self.kind in NEEDS:
            self._check_statistics(logits)
            statistics = {NEEDS[self.kind]: self.statistic}
        probabilities = (full_precision(logits) / self.tau).softmax(1)
        kept = component_target(
            probabilities, target, self.kind, statistics, self.anchor, self.similarity_tau
        )
        return self.tau * kept.clamp_min(torch.finfo(kept.dtype).tiny).log()

    def _load(self) -> None:
        """Reads the statistic that the kind needs."""
        if self.file is None:
            raise ValueError(
                f'teacher_target.kind {self.kind!r} needs statistics of the teacher: set '
                f'teacher_target.statistics to a file made by {TOOL}'
            )
        found = read_statistics(OPTION, self.file)
        value = found[NEEDS[self.kind]]
        if value is None:
            raise ValueError(
                f'teacher_target.kind is {self.kind!r}, which compares the weights of a linear '
                f'classifier, and the teacher of {self.file} has none'
            )
        self._found = found
        # Neither trained nor part of a checkpoint, but on the model's device
        self.register_buffer('statistic', value, persistent=False)

    def _check_labels(self, target: Tensor | None) -> None:
        need = f'teacher_target.kind {self.kind!r} needs the class of each image'
        if target is None:
            raise ValueError(f"{need}, and there are no labels; use anchor='argmax'")
        if isinstance(target, list) or target.dim() > 1:
            raise ValueError(
                f'{need}, and the batches have mixed or soft labels; remove batch_augments '
                "(train_cfg.augments of the student, or data_preprocessor), or use anchor='argmax'"
            )

    def _check_statistics(self, logits: Tensor) -> None:
        check_classes(OPTION, self.file, self._found, logits.shape[1])
        # The similarity of weights has no temperature
        if self.kind != 'weightsim':
            check_tau(OPTION, self.file, self._found, 'tau', self.tau)
