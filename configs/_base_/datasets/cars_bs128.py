# Stanford Cars, whole images that were augmented beforehand (tools/dataset_converters/
# prototype_folders.py cars), in the batches of Proto2Proto (Keswani et al., CVPR 2022).
_base_ = ['cub_cropped_bs80.py']
data_preprocessor = dict(num_classes=196)
data_root = 'data/cars_prototypes'
train_dataloader = dict(
    batch_size=128, dataset=dict(data_root=data_root, data_prefix='train_augmented')
)
push_dataloader = dict(batch_size=32, dataset=dict(data_root=data_root, data_prefix='train'))
val_dataloader = dict(dataset=dict(data_root=data_root, data_prefix='test'))
test_dataloader = dict(dataset=dict(data_root=data_root, data_prefix='test'))
