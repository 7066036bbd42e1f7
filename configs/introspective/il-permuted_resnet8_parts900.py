# The ablation: each image's similarities are shuffled among the classes.
_base_ = ['il_resnet8_parts900.py']
model = dict(terms=dict(il=dict(permute=True)))
