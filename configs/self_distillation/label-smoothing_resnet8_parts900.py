# Label smoothing (Szegedy et al., CVPR 2016).
_base_ = ['ce_resnet8_parts900.py']
model = dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
