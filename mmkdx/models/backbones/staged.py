"""What the backbones share: freezing their first stages."""

from __future__ import annotations

from mmpretrain.models.backbones.base_backbone import BaseBackbone

from mmkdx.arguments import integer

#: Convolutions ~ N(0, 2 / fan-out) and a bias of 0 (He et al., ICCV 2015).
FAN_OUT_NORMAL = dict(type='Kaiming', layer='Conv2d')


class StagedBackbone(BaseBackbone):
    """Base of backbones that are a row of stages.

    A subclass lists its modules in ``stages`` and calls ``_freeze_stages`` when it has made them.

    Args:
        frozen_stages (int): Stages up to this one get no gradient and stay in eval mode, so that
            their batch norm statistics do not move. 0 is the stem; the last stage includes what
            follows it. Defaults to -1: none.
        init_cfg (dict | list, optional): mmengine's initialisation. Defaults to None.

    Raises:
        ValueError: If there is no such stage.
    """

    #: For the stem and each stage the names of its modules.
    stages: tuple[tuple[str, ...], ...] = ()

    def __init__(self, frozen_stages: int = -1, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        # From -1, nothing, to the last stage: the whole backbone
        last = len(self.stages) - 1
        self.frozen_stages = integer('backbone.frozen_stages', frozen_stages, -1, last)

    def train(self, mode: bool = True) -> StagedBackbone:
        """Sets the mode of all but the frozen stages."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        for names in self.stages[: self.frozen_stages + 1]:
            for name in names:
                self.get_submodule(name).requires_grad_(False).eval()
